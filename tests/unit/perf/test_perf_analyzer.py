"""perf_analyzer: how it is found and called, and what is read from its export."""

import json
from pathlib import Path

import pytest
from tests.models import ModelShelf
from tests.unit.perf.fake_kserve import FakeKServe
from tokenizers import Tokenizer

from tritonembed_manager.tune.loads import LoadShape, WordTexts, count_tokens
from tritonembed_perf.cli import main
from tritonembed_perf.failures import UsageError
from tritonembed_perf.perf_analyzer import Program, command_line, find_program, read_export, wheel_for, write_input

EXPORT = (
    "Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,"
    "Server Compute Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency\n"
    "4,200.0,9,300,2000,100,5000,400,3,7000,8000,8500,9000\n"
)
COPY = 'while [ "$1" != "-f" ]; do shift; done; cp EXPORT "$2"'


def fake_program(folder: Path, script: str) -> Path:
    program = folder / "perf_analyzer"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program


def run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["perf-analyzer", *arguments])
    return int(ended.value.code or 0)


def test_the_input_has_texts_of_exactly_the_loads_length(shelf: ModelShelf, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(shelf("bert") / "tokenizer.json"))
    write_input(tmp_path / "input.json", WordTexts(tokenizer), LoadShape(9, 2, 1))
    texts = [entry["text"][0] for entry in json.loads((tmp_path / "input.json").read_text())["data"]]
    assert len(set(texts)) > 30
    assert set(count_tokens(tokenizer, texts)) == {9}


def test_the_command_line_has_perf_analyzers_options() -> None:
    few, many = (
        command_line(Path("/bin/perf_analyzer"), "h:1", Path("in.json"), LoadShape(9, 2, n), 0.5) for n in (1, 16)
    )
    text = " ".join(few)
    assert text.startswith("/bin/perf_analyzer -m embedding -i grpc -u h:1 -b 2 --input-data in.json -p 500 ")
    assert text.endswith("--concurrency-range 1")
    assert many[-1] == "--async"


def test_inferences_become_sentences_and_microseconds_milliseconds() -> None:
    row = read_export(EXPORT, LoadShape(50, 4, 4))
    assert (row["requests_per_second"], row["tokens_per_second"]) == (50, 10_000)
    assert (row["p50_ms"], row["p90_ms"], row["p99_ms"]) == (7, 8, 9)
    assert (row["queue_ms"], row["compute_ms"]) == (2, 5.5)


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
def test_a_failure_is_reported_in_perf_analyzers_words(
    script: str,
    reason: str,
    tmp_path: Path,
    shelf: ModelShelf,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("tritonembed_perf.perf_analyzer.check_loads", lambda *_: None)
    program = fake_program(tmp_path, script)
    where = ["--server", "h:1", "--loads", "9x2@4", "--perf-analyzer", str(program)]
    assert run(["--model", str(shelf("bert")), *where]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith(f"perf_analyzer, triton, 9x2@4: {reason}")


def test_measurements_before_a_failure_are_shown_and_written(
    tmp_path: Path, shelf: ModelShelf, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tritonembed_perf.perf_analyzer.check_loads", lambda *_: None)
    (tmp_path / "export.csv").write_text(EXPORT)
    script = f'case "$*" in *"--concurrency-range 16"*) echo gone; exit 1;; esac; for last; do :; done; {COPY}'
    program = fake_program(tmp_path, script.replace("EXPORT", str(tmp_path / "export.csv")))
    path = tmp_path / "analyzed.json"
    arguments = ["--model", str(shelf("bert")), "--server", "h:1", "--perf-analyzer", str(program)]
    assert run([*arguments, "--loads", "9x2@1,9x2@16", "--json", str(path)]) == 1
    said = capsys.readouterr()
    assert "9x2@16: gone" in said.err
    assert "9x2@1 " in said.out
    assert "perf_analyzer -m embedding" in said.out
    assert str(tmp_path) not in said.out
    text = path.read_text()
    assert str(tmp_path) not in text
    [row] = json.loads(text)["rows"]
    assert (row["target"], row["load"], row["requests_per_second"]) == ("triton", "9x2@1", 100)


def test_only_the_manager_gets_the_key_and_nobody_is_shown_it(
    tmp_path: Path, shelf: ModelShelf, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checked = []
    monkeypatch.setattr("tritonembed_perf.perf_analyzer.check_loads", lambda *given: checked.append(given[3:]))
    monkeypatch.setenv("TRITONEMBED_API_KEY", "te-secret")
    (tmp_path / "export.csv").write_text(EXPORT)
    program = fake_program(
        tmp_path, f'echo "$@" >> {tmp_path}/calls; {COPY.replace("EXPORT", f"{tmp_path}/export.csv")}'
    )
    where = ["--server", "h:1", "--manager", "h:2", "--perf-analyzer", str(program), "--json", str(tmp_path / "json")]
    assert run(["--model", str(shelf("bert")), "--loads", "9x2@1", *where]) == 0
    assert checked == [("h:1", None), ("h:2", "te-secret")]
    to_triton, to_manager = (tmp_path / "calls").read_text().splitlines()
    assert "-H" not in to_triton
    assert "-H authorization:Bearer te-secret" in to_manager
    said = capsys.readouterr()
    assert "te-secret" not in said.out + said.err + (tmp_path / "json").read_text()


def test_a_length_that_the_model_does_not_take_is_refused_before_anything_starts(
    shelf: ModelShelf, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--model", str(shelf("bert")), "--loads", "65x1@1"]) == 2
    assert "65x1@1: the model takes at most 64 tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("models", "sentences", "said"),
    [
        (["other"], 2, "the server has no model 'embedding'; it has: other"),
        (["embedding"], 129, "9x129@1: the server takes 128 sentences a request"),
        (["embedding"], 2, "no server answers at 127.0.0.1:1 over kserve"),
    ],
)
def test_both_servers_are_checked_before_either_is_measured(
    models: list[str],
    sentences: int,
    said: str,
    tmp_path: Path,
    shelf: ModelShelf,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("tritonembed_perf.loadgen.target.QUESTION_TIMEOUT_S", 0.5)
    program = fake_program(tmp_path, f"touch {tmp_path}/ran")
    fake = FakeKServe(shelf("bert"), 64)
    fake.models = models
    where = ["--server", fake.target, "--manager", "127.0.0.1:1", "--perf-analyzer", str(program)]
    try:
        assert run(["--model", str(shelf("bert")), "--loads", f"9x{sentences}@1", *where]) == 2
    finally:
        fake.close()
    [line] = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "ran").exists()
