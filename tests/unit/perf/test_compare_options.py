"""The command's options. Invalid options are refused; --list and --merge measure nothing."""

import json
from pathlib import Path

import pytest

from tritonembed_perf.cli import main
from tritonembed_perf.compare.contest import make_head
from tritonembed_perf.compare.peer import Bench
from tritonembed_perf.compare.peers import ENVIRONMENTS, all_peers, choose_peers, with_settings
from tritonembed_perf.compare.results import Result, Trial, publish
from tritonembed_perf.failures import UsageError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The part of a model's folder that the options check."""
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["compare", *arguments])
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peers", "nobody"], "--peers: 'nobody' is none of tritonembed,"),
        (["--device", "tpu"], "'tpu' is not one of 'cpu', 'cuda'"),
        (["--dtype", "int3"], "'int3' is not one of 'float32', 'bfloat16', 'float16'"),
        (["--loads", "50x64"], "--loads: '50x64' is not a load such as 50x64@32"),
        (["--rates", "0"], "--rates is numbers from 1 on"),
        (["--rounds", "0"], "--rounds"),
        (["--python", "nobody=/bin/sh"], "--python is PEER=PATH, and PEER one of sentence-transformers,"),
        (["--python", "vllm-serve"], "--python is PEER=PATH"),
        (["--python", "vllm-serve=/no/such/python"], "--python vllm-serve: /no/such/python is not a program"),
        (["--model", "/no/such/model"], "--model: /no/such/model is not the folder of a model"),
        (["--merge", "/no/such/compare.json"], "--merge: compare.json: No such file"),
        (["--rounds", "many"], "--rounds"),
    ],
)
def test_an_invalid_option_is_one_line_and_exit_code_2(
    model: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    # If an option is given twice, the last value counts.
    code, _, said = run(["--model", str(model), "--device", "cpu", *arguments], capsys)
    assert code == 2
    assert message in said
    assert len(said.splitlines()) == 1


def test_the_list_has_every_peer(capsys: pytest.CaptureFixture[str]) -> None:
    code, said, _ = run(["--list"], capsys)
    assert code == 0
    assert [line.split()[0] for line in said.splitlines()] == list(all_peers())


def test_reports_are_merged_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = {"cpu": "a CPU", "cores": 2, "memory_gib": 24, "gpus": []}
    trial = Trial(50, 64, 4)
    for name, speed in (("one", 10.0), ("two", 20.0)):
        environment = {"when": "now", "machine": machine, "versions": {}, "command": "tritonembed-bench compare"}
        figures = {"tokens_per_second": speed, "requests_per_second": 1.0, "p50_ms": 1.0, "p99_ms": 1.0}
        figures |= {"errors": {}, "wrong": 0, "faults": [], "client_saturated": False}
        head = make_head(environment, "bert", "float32", "cpu", True, [trial])
        publish((head, [Result(name, samples={"defaults": {str(trial): [figures]}})]), tmp_path / name)
    capsys.readouterr()
    files = [part for name in ("one", "two") for part in ("--merge", str(tmp_path / name / "compare.json"))]
    code, said, _ = run([*files, "--out", str(tmp_path / "both")], capsys)
    assert code == 0
    assert said.index("two ") < said.index("one ")
    merged = json.loads((tmp_path / "both" / "compare.json").read_text())
    assert [entry["system"] for entry in merged["systems"]] == ["one", "two"]
    assert (tmp_path / "both" / "tokens-by-load.svg").exists()


def test_peers_run_in_their_own_order() -> None:
    assert [peer.name for peer in choose_peers("infinity-emb, tritonembed")] == ["tritonembed", "infinity-emb"]
    assert len(choose_peers("all")) == len(all_peers())


def test_settings_of_ones_own_take_the_place_of_a_peers_sweep(tmp_path: Path) -> None:
    peers = with_settings(choose_peers("vllm-serve,tritonembed"), ["tritonembed=--replicas 1 --dtype=float16"])
    bench = Bench(tmp_path, "float32", "cuda", 2, tmp_path)
    assert [peer.configs(bench) for peer in peers] == [["--replicas 1 --dtype=float16"], ["defaults"]]
    for wrong in ("infinity-emb=--batch-size 1", "tritonembed"):
        with pytest.raises(UsageError, match="PEER one of tritonembed, vllm-serve"):
            with_settings(peers, [wrong])


@pytest.mark.parametrize("on", ["cpu", "cuda"])
def test_every_peer_has_configurations_with_different_flags(tmp_path: Path, on: str) -> None:
    for peer in all_peers().values():
        texts = peer.configs(Bench(tmp_path, "float32", on, 2, tmp_path))
        assert texts
        assert len(set(texts)) == len(texts)


def test_every_environment_belongs_to_a_peer() -> None:
    assert set(ENVIRONMENTS) <= set(all_peers())
