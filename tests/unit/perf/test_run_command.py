"""`tritonembed-bench run` from its options to its exit code, against a small KServe server in this process."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.fakes.certificates import Files
from tests.models import ModelShelf
from tests.unit.perf.fake_kserve import FakeKServe

from tritonembed_perf.cli import main

DIMENSIONS = 64
"""The width of the shelf's `bert`."""


@pytest.fixture
def server(shelf: ModelShelf) -> Iterator[FakeKServe]:
    fake = FakeKServe(shelf("bert"), DIMENSIONS)
    yield fake
    fake.close()


@pytest.fixture
def run(server: FakeKServe, shelf: ModelShelf, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command against the fake. Returns its exit code, standard output and standard error."""

    def call(*options: str, model: str | None = None) -> tuple[int, str, str]:
        arguments = ["run", "--server", server.target, "--model", model or str(shelf("bert")), "--warm-up", "0"]
        with pytest.raises(SystemExit) as ended:
            main([*arguments, *options])
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return call


def test_a_closed_loop_sends_exactly_the_requested_number_of_requests_and_reports_them(
    run: Any, server: FakeKServe, tmp_path: Path
) -> None:
    path = tmp_path / "result.json"
    options = ("--requests", "40", "--concurrency", "3", "--prompt-length", "9", "--json", str(path))
    code, out, err = run("--batch-sizes", "1,4", "--processes", "2", *options)
    assert (code, err) == (0, "")
    text = path.read_text()
    assert str(tmp_path) not in text
    report = json.loads(text)
    assert report["machine"]["cores"] > 0
    assert not report["interrupted"]
    for row, batch_size in zip(report["rows"], (1, 4), strict=True):
        assert (row["batch_size"], row["requests"], row["tokens"]) == (batch_size, 40, 40 * batch_size * 9)
        assert (row["errors"], row["wrong"]) == ({}, 0)
        assert row["compared"] > 0
        ordered = [row[f"{name}_ms"] for name in ("p50", "p90", "p99", "max")]
        assert ordered == sorted(ordered)
    assert server.sizes.count(4) >= 40
    for line in ("requests/s", "sentences/s", "tokens/s", "latency p99, ms", "client CPU, s"):
        assert line in out


def test_a_server_over_tls_is_measured_by_a_client_with_a_certificate(
    shelf: ModelShelf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, path = Files(tmp_path), tmp_path / "result.json"
    fake = FakeKServe(shelf("bert"), DIMENSIONS, files.credentials(files.authority.pem))
    chain = (f"--tls-ca={files.ca}", f"--tls-cert={files.certificate}", f"--tls-key={files.key}")
    options = ("--server", fake.target, "--model", str(shelf("bert")), "--warm-up", "0", "--batch-sizes", "1")
    try:
        with pytest.raises(SystemExit) as ended:
            main(["run", *options, "--requests", "10", "--prompt-length", "9", *chain, "--json", str(path)])
        assert (ended.value.code, capsys.readouterr().err) == (0, "")
    finally:
        fake.close()
    [row] = json.loads(path.read_text())["rows"]
    assert (row["requests"], row["errors"], row["wrong"]) == (10, {}, 0)
    assert str(tmp_path) not in path.read_text()


def test_only_answers_of_the_measured_time_count_as_compared(run: Any, server: FakeKServe, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    options = ("--batch-sizes", "1", "--requests", "5", "--prompt-length", "9", "--warm-up", "0.3")
    assert run(*options, "--json", str(path))[0] == 0
    [row] = json.loads(path.read_text())["rows"]
    assert len(server.sizes) > 50
    assert (row["requests"], row["compared"]) == (5, 5)


def test_an_open_loop_sends_at_the_rate_whatever_the_responses(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    options = ("--batch-sizes", "2", "--prompt-length", "9", "--json", str(path))
    code, out, _ = run("--rate", "400", "--requests", "60", *options)
    assert code == 0
    assert "400 requests/s, open loop" in out
    [row] = json.loads(path.read_text())["rows"]
    assert (row["requests"], row["offered_requests_per_second"]) == (60, 400.0)


def test_wrong_vectors_fail_the_run(run: Any, server: FakeKServe) -> None:
    # Sentences that are sent alone, for the reference, get right vectors.
    server.spoil = lambda vectors: vectors[::-1]
    code, out, err = run("--batch-sizes", "3", "--requests", "20", "--prompt-length", "9")
    assert code == 1
    assert "batch 3: a vector with cosine" in out
    assert "answers were wrong" in err


def test_answers_that_are_no_vectors_of_the_model_fail_the_run(run: Any, server: FakeKServe) -> None:
    server.spoil = lambda vectors: [vector[:5] for vector in vectors] if len(vectors) > 1 else vectors
    code, out, _ = run("--batch-sizes", "3", "--requests", "20", "--prompt-length", "9")
    assert code == 1
    assert "batch 3: vectors of 5 dimensions instead of 64" in out


def test_errors_are_counted_by_kind_and_the_rest_is_measured(run: Any, server: FakeKServe, tmp_path: Path) -> None:
    def refuse(number: int, sentences: int, context: Any) -> None:
        if sentences > 1 and number % 4 == 0:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")

    server.on_request = refuse
    path = tmp_path / "result.json"
    code, out, _ = run("--batch-sizes", "2", "--requests", "40", "--prompt-length", "9", "--json", str(path))
    assert code == 0
    [row] = json.loads(path.read_text())["rows"]
    assert row["errors"] == {"UNAVAILABLE": 40 - row["requests"]}
    assert 0 < row["requests"] < 40
    assert "errors: UNAVAILABLE" in out
    assert "Exceeds maximum queue size" in out


def test_no_answer_at_all_fails_the_run(run: Any, server: FakeKServe) -> None:
    def refuse(_number: int, sentences: int, context: Any) -> None:
        if sentences > 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, "no")

    server.on_request = refuse
    code, _, err = run("--batch-sizes", "2", "--requests", "10", "--prompt-length", "9")
    assert code == 1
    assert "no request of 2 sentences was answered" in err


def test_ctrl_c_prints_the_figures_so_far(run: Any, server: FakeKServe, tmp_path: Path) -> None:
    ended = threading.Event()

    def interrupt(_number: int, sentences: int, _context: Any) -> None:
        if sentences == 4 and server.sizes.count(4) == 100:
            os.kill(os.getpid(), signal.SIGINT)
            # This request is still in flight when the run ends.
            ended.wait(60)

    server.on_request = interrupt
    path = tmp_path / "result.json"
    options = ("--prompt-length", "9", "--json", str(path))
    code, out, err = run("--batch-sizes", "2,4,8", "--requests", "300", "--concurrency", "1", *options)
    ended.set()
    assert (code, err) == (130, "")
    assert "interrupted" in out
    report = json.loads(path.read_text())
    assert report["interrupted"]
    whole, part = report["rows"]
    assert (whole["batch_size"], whole["requests"]) == (2, 300)
    assert part["batch_size"] == 4
    assert 0 < part["requests"] < 300
    assert 8 not in server.sizes


def test_texts_of_a_file_are_sent(run: Any, server: FakeKServe, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("one\ntwo words\nthree words here\n")
    code, out, _ = run("--dataset", str(tmp_path / "texts.txt"), "--batch-sizes", "3", "--requests", "10")
    assert code == 0
    assert "texts of texts.txt" in out
    assert server.sizes.count(3) >= 10


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--prompt-length", "65"), "--prompt-length 65: the model takes at most 64 tokens"),
        (("--prompt-length", "2"), "--prompt-length 2"),
        (("--batch-sizes", "129"), "--batch-sizes 129: the server takes 128 a request"),
        (("--rate", "5", "--concurrency", "2"), "--rate and --concurrency contradict each other"),
        (("--tokenizer", "/nowhere/model"), "the tokenizer of /nowhere/model"),
        (("--json", "/nowhere/result.json"), "--json: there is no folder /nowhere"),
        (("--duration", "inf"), "--duration"),
    ],
)
def test_impossible_options_are_one_line_and_exit_code_2(run: Any, options: tuple[str, ...], said: str) -> None:
    code, _, err = run(*options)
    assert code == 2
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_model_that_the_server_lacks_is_named_with_the_servers_models(run: Any, shelf: ModelShelf) -> None:
    for model in ("other", "embedder"):
        code, _, err = run("--tokenizer", str(shelf("bert")), model=model)
        assert code == 2
        assert f"the server has no model '{model}'; it has: " in err
        assert "embedding" in err.partition("it has: ")[2]


def test_a_tokenizer_of_another_model_is_refused(run: Any, shelf: ModelShelf) -> None:
    code, _, err = run("--tokenizer", str(shelf("roberta")), model="embedding")
    assert code == 2
    assert "64 dimensions, those of roberta 128" in err


@pytest.mark.parametrize("protocol", ["kserve", "openai", "arctic"])
def test_an_unreachable_server_is_one_line_and_exit_code_2(
    protocol: str, shelf: ModelShelf, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tritonembed_perf.loadgen.target.QUESTION_TIMEOUT_S", 0.2)
    model = ["--model", str(shelf("bert"))] if protocol == "kserve" else ["--tokenizer", str(shelf("bert"))]
    with pytest.raises(SystemExit) as ended:
        main(["run", "--protocol", protocol, "--server", "127.0.0.1:1", *model])
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tritonembed-bench: no server answers at 127.0.0.1:1 over {protocol}")
