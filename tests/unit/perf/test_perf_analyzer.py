"""Scenarios of perf_analyzer, its command line, and what is read from its export."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.models import ModelShelf
from tests.unit.perf.fake_kserve import FakeKServe
from tokenizers import Tokenizer

from tritonembed_perf.cli import main
from tritonembed_perf.failures import BenchError, UsageError
from tritonembed_perf.perf_analyzer.binary import Program, find_program, wheel_for
from tritonembed_perf.perf_analyzer.runs import command_line, read_export, run_point, write_input
from tritonembed_perf.perf_analyzer.scenarios import FOLDER, Shape, load_scenarios, read_scenario
from tritonembed_perf.run.corpus import WordTexts, count_tokens

GOOD: dict[str, Any] = {
    "description": "short",
    "load": "concurrency",
    "values": [1, 16],
    "shapes": [{"tokens": 9, "sentences": 2}],
    "targets": ["triton"],
    "window_seconds": 0.5,
}
EXPORT = (
    "Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,"
    "Server Compute Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency\n"
    "4,200.0,9,300,2000,100,5000,400,3,7000,8000,8500,9000\n"
)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_committed_scenario_can_be_run(path: Path) -> None:
    [scenario] = load_scenarios([path.stem])
    assert scenario.name == path.stem


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"load": "other"}, "load"),
        ({"values": []}, "values"),
        ({"values": [0]}, "values"),
        ({"values": [True]}, "values"),
        ({"shapes": [{"tokens": 9}]}, "shapes"),
        ({"shapes": [{"tokens": 9, "sentences": "many"}]}, "shapes"),
        ({"targets": ["elsewhere"]}, "targets"),
        ({"window_seconds": 0}, "window_seconds"),
        ({"windows": 2}, "windows"),
        ({"more": 1}, "fields are"),
    ],
)
def test_a_field_that_makes_no_sense_is_named(change: dict[str, Any], field: str) -> None:
    with pytest.raises(UsageError, match=field):
        read_scenario("mine", GOOD | change)


def test_a_scenario_that_is_not_there_or_not_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither a file nor one of concurrency"):
        load_scenarios(["nothing"])
    (tmp_path / "bad.yaml").write_text("{")
    with pytest.raises(UsageError, match=r"bad\.yaml: not YAML"):
        load_scenarios([str(tmp_path / "bad.yaml")])


def test_the_input_has_texts_of_exactly_the_shapes_length(shelf: ModelShelf, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(shelf("bert") / "tokenizer.json"))
    write_input(tmp_path / "input.json", WordTexts(tokenizer), Shape(9, 2))
    texts = [entry["text"][0] for entry in json.loads((tmp_path / "input.json").read_text())["data"]]
    assert len(set(texts)) > 30
    assert set(count_tokens(tokenizer, texts)) == {9}


def test_the_command_is_perf_analyzers_own() -> None:
    scenario = read_scenario("mine", GOOD)
    few, many = (
        command_line(Path("/bin/perf_analyzer"), "h:1", Path("in.json"), scenario, Shape(9, 2), n) for n in (1, 16)
    )
    text = " ".join(few)
    assert text.startswith("/bin/perf_analyzer -m embedding -i grpc -u h:1 -b 2 --input-data in.json -p 500 ")
    assert text.endswith("--concurrency-range 1")
    assert many[-1] == "--async"
    offered = read_scenario("mine", GOOD | {"load": "request_rate"})
    text = " ".join(command_line(Path("perf_analyzer"), "h:1", Path("in.json"), offered, Shape(9, 2), 20))
    assert "--request-rate-range 20 --request-distribution poisson" in text


def test_its_inferences_are_sentences_and_its_microseconds_milliseconds() -> None:
    point = read_export(EXPORT, "triton", Shape(50, 4), 4)
    assert (point.requests_per_second, point.sentences_per_second, point.tokens_per_second) == (50, 200, 10_000)
    assert (point.p50_ms, point.p90_ms, point.p99_ms) == (7, 8, 9)
    assert (point.queue_ms, point.compute_ms) == (2, 5.5)


def test_a_glibc_gets_the_newest_wheel_whose_program_it_runs() -> None:
    assert wheel_for("2.39") == "2.60.0"
    assert wheel_for("2.36") == "2.50.0"
    for glibc in ("2.12", "", "musl"):
        with pytest.raises(UsageError, match="--perf-analyzer"):
            wheel_for(glibc)


def test_a_program_on_path_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = fake_program(tmp_path, "true")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_program(None) == Program(program)
    with pytest.raises(UsageError, match="is not a program"):
        find_program(tmp_path / "other")


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo Starting; echo 'error: the model is gone' >&2; echo; exit 99", "error: the model is gone"),
        ("echo 'Request concurrency: 4'; echo 'No valid requests recorded' >&2; exit 3", "No valid requests recorded"),
        ("echo Starting; exit 3", "Starting"),
        ("exit 3", "exit code 3 without a word"),
    ],
)
def test_a_failure_is_told_in_perf_analyzers_own_words(script: str, reason: str, tmp_path: Path) -> None:
    program = Program(fake_program(tmp_path, script))
    scenario = read_scenario("mine", GOOD)
    with pytest.raises(BenchError, match=rf"perf_analyzer, triton, 9x2, concurrency 4: {reason}$"):
        run_point(program, [str(program.path)], scenario, "triton", Shape(9, 2), 4)


def test_what_was_measured_before_a_failure_is_shown_and_written(
    tmp_path: Path, shelf: ModelShelf, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tritonembed_perf.perf_analyzer.targets.check_server", lambda *_: None)
    (tmp_path / "export.csv").write_text(EXPORT)
    script = f'case "$*" in *"--concurrency-range 16"*) echo gone; exit 1;; esac; for last; do :; done; {COPY}'
    program = fake_program(tmp_path, script.replace("EXPORT", str(tmp_path / "export.csv")))
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(GOOD))
    arguments = ["--model", str(shelf("bert")), "--server", "h:1", "--perf-analyzer", str(program)]
    arguments += ["--scenario", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ended:
        main(["perf-analyzer", *arguments])
    said = capsys.readouterr()
    assert ended.value.code == 1
    assert "concurrency 16: gone" in said.err
    assert "9x2" in said.out
    assert "perf_analyzer -m embedding" in said.out
    text = (tmp_path / "out" / "perf-analyzer.json").read_text()
    assert str(tmp_path) not in text
    [result] = json.loads(text)["scenarios"]
    [point] = result["points"]
    assert (point["value"], point["requests_per_second"], point["shape"]) == (1, 100, "9x2")
    assert (tmp_path / "out" / "mine-p99.svg").exists()


def test_a_length_that_the_model_does_not_take_is_refused_before_anything_starts(
    tmp_path: Path, shelf: ModelShelf, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(GOOD | {"shapes": [{"tokens": 65, "sentences": 1}]}))
    with pytest.raises(SystemExit) as ended:
        main(["perf-analyzer", "--model", str(shelf("bert")), "--scenario", str(tmp_path / "mine.yaml")])
    assert ended.value.code == 2
    assert "65x1: the model takes at most 64 tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("models", "sentences", "said"),
    [
        (["other"], 2, "the server has no model 'embedding'; it has: other"),
        (["embedding"], 129, "9x129: the server takes 128 sentences a request"),
        (["embedding"], 2, "no server answers at 127.0.0.1:1 over kserve"),
    ],
)
def test_both_servers_are_looked_at_before_either_is_measured(
    models: list[str],
    sentences: int,
    said: str,
    tmp_path: Path,
    shelf: ModelShelf,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("tritonembed_perf.run.target.QUESTION_TIMEOUT_S", 0.5)
    scenario = GOOD | {"shapes": [{"tokens": 9, "sentences": sentences}], "targets": ["triton", "manager"]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(scenario))
    program = fake_program(tmp_path, f"touch {tmp_path}/ran")
    fake = FakeKServe(shelf("bert"), 64)
    fake.models = models
    where = ["--server", fake.target, "--manager", "127.0.0.1:1", "--perf-analyzer", str(program)]
    try:
        with pytest.raises(SystemExit) as ended:
            main(["perf-analyzer", "--model", str(shelf("bert")), "--scenario", str(tmp_path / "mine.yaml"), *where])
    finally:
        fake.close()
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "ran").exists()


COPY = 'while [ "$1" != "-f" ]; do shift; done; cp EXPORT "$2"'


def fake_program(folder: Path, script: str) -> Path:
    program = folder / "perf_analyzer"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program
