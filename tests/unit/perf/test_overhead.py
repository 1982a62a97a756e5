"""The stages of a request, from what Triton's statistics and traces and the engine's metrics tell."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.models import ModelShelf
from tests.unit.perf.fake_kserve import FakeKServe
from tritonclient.grpc import service_pb2

from tritonembed_perf.cli import main
from tritonembed_perf.failures import UsageError
from tritonembed_perf.manager_process import ServerEndedError
from tritonembed_perf.overhead import measuring, traced_server
from tritonembed_perf.overhead.measuring import Measured
from tritonembed_perf.overhead.stages import STAGES, ClientTimes, EngineTimes, ModelTimes, from_statistics, from_traces
from tritonembed_perf.overhead.triton_tells import growth, read_traces
from tritonembed_perf.shape_load import ShapeLoad

MS = 1_000_000


LIST = EngineTimes(3.0 * MS, 15.0 * MS)
"""Of requests whose answers are a list: Triton's 20 ms of computation hold all of it."""


def test_statistics_make_up_the_whole_latency() -> None:
    client = [ClientTimes(1 * MS, 0, 30 * MS, 2 * MS), ClientTimes(3 * MS, 0, 50 * MS, 4 * MS)]
    models = {
        "embedding": ModelTimes(2, 30.0 * MS, 0.0, 0.0),
        "tokenizer": ModelTimes(2, 0.0, 1.0 * MS, 2.0 * MS),
        "embedder": ModelTimes(2, 0.0, 5.0 * MS, 20.0 * MS),
    }
    stages = from_statistics(client, models, LIST)
    assert list(stages) == list(STAGES)
    assert stages == pytest.approx(
        {
            "client encode": 2,
            "wire": 10,
            "tokenizer queue": 1,
            "tokenizer": 2,
            "embedder queue": 8,
            "embedder": 17,
            "between models": 2,
            "reply": 0,
            "client decode": 3,
        }
    )


def moments(start: int, *values: int) -> dict[str, int]:
    names = ("REQUEST_START", "QUEUE_START", "COMPUTE_START", "COMPUTE_END", "REQUEST_END")
    return {name: (start + value) * MS for name, value in zip(names, values, strict=True)}


def trace(start: int) -> dict[str, dict[str, int]]:
    return {
        "embedding": {"REQUEST_START": (start + 1) * MS, "REQUEST_END": (start + 30) * MS},
        "tokenizer": moments(start, 1, 2, 4, 7, 7),
        "embedder": moments(start, 8, 8, 9, 27, 28),
    }


def test_traces_part_the_way_there_from_the_way_back() -> None:
    client = {"a": ClientTimes(MS, 100 * MS, 133 * MS, MS), "untraced": ClientTimes(99 * MS, 0, 99 * MS, 99 * MS)}
    stages = from_traces(client, {"a": trace(100)}, LIST)
    assert list(stages) == list(STAGES)
    assert stages == pytest.approx(
        {
            "client encode": 1,
            "wire": 1,
            "tokenizer queue": 2,
            "tokenizer": 3,
            "embedder queue": 4,
            "embedder": 15,
            "between models": 5,
            "reply": 3,
            "client decode": 1,
        }
    )


def test_what_response_senders_answer_is_shown_as_the_engine_counted_it() -> None:
    """Triton saw a hand-over of 1 ms; the request then waited 40 ms in the engine and took 500 ms there."""
    engine = EngineTimes(40.0 * MS, 500.0 * MS)
    client = {"a": ClientTimes(MS, 100 * MS, 660 * MS, MS)}
    embedding = {"REQUEST_START": 101 * MS, "REQUEST_END": 655 * MS}
    traces = {"a": {**trace(100), "embedding": embedding, "embedder": moments(100, 8, 8, 9, 10, 10)}}
    models = {
        "embedding": ModelTimes(1, 554.0 * MS, 0.0, 0.0),
        "tokenizer": ModelTimes(1, 6.0 * MS, 2.0 * MS, 3.0 * MS),
        "embedder": ModelTimes(1, 2.0 * MS, 1.0 * MS, 1.0 * MS),
    }
    for stages in (from_traces(client, traces, engine), from_statistics(list(client.values()), models, engine)):
        assert (stages["embedder queue"], stages["embedder"]) == pytest.approx((41, 500))
        assert stages["between models"] == pytest.approx(554 - 5 - 541)
        assert sum(stages.values()) == pytest.approx(1 + 560 + 1)


def test_the_parts_are_the_whole_also_where_triton_counts_a_moment_twice() -> None:
    """It lets go of a request after its answer has gone on, and counts that in both places."""
    late = trace(100)
    late["tokenizer"]["COMPUTE_END"] = 109 * MS
    late["embedding"] |= {"INFER_RESPONSE_COMPLETE": 126 * MS, "REQUEST_END": 140 * MS}
    client = {"a": ClientTimes(MS, 100 * MS, 128 * MS, MS)}
    stages = from_traces(client, {"a": late}, LIST)
    assert (stages["tokenizer"], stages["embedder"], stages["reply"]) == pytest.approx((4, 15, 2))
    assert sum(stages.values()) == pytest.approx(30)
    models = {name: ModelTimes(1, 40.0 * MS, 5.0 * MS, 20.0 * MS) for name in ("embedding", "tokenizer", "embedder")}
    stages = from_statistics(list(client.values()), models, LIST)
    assert (stages["wire"], stages["between models"]) == pytest.approx((0, 0), abs=1e-9)
    assert sum(stages.values()) == pytest.approx(30)


def test_requests_without_traces_are_not_taken_for_fast_ones() -> None:
    with pytest.raises(ValueError, match="no request has a trace"):
        from_traces({"a": ClientTimes(1, 2, 3, 4)}, {"a": {"embedding": {}}}, LIST)


@pytest.mark.parametrize("end", ["]", ""])
def test_a_trace_belongs_to_the_request_of_its_ensemble(end: str, tmp_path: Path) -> None:
    entries: list[dict[str, Any]] = [
        {"id": 1, "model_name": "embedding", "request_id": "mine"},
        {"id": 1, "timestamps": [{"name": "REQUEST_START", "ns": 5}]},
        {"id": 2, "model_name": "tokenizer", "parent_id": 1},
        {"id": 2, "timestamps": [{"name": "QUEUE_START", "ns": 6}]},
    ]
    later = {"id": 2, "timestamps": [{"name": "COMPUTE_START", "ns": 7}]}
    # Triton writes a file of many at a time; the last one is not closed while it runs.
    (tmp_path / "trace.json.0").write_text(json.dumps(entries))
    (tmp_path / "trace.json.1").write_text("[" + json.dumps(later) + end)
    assert read_traces(tmp_path) == {
        "mine": {"embedding": {"REQUEST_START": 5}, "tokenizer": {"QUEUE_START": 6, "COMPUTE_START": 7}}
    }


def statistics(count: int, ns: int) -> Any:
    found = service_pb2.ModelStatistics()
    for field in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        getattr(found.inference_stats, field).count = count
        getattr(found.inference_stats, field).ns = ns
    return found


def test_statistics_are_means_of_what_was_added() -> None:
    names = ("embedding", "tokenizer", "embedder")
    before, after = ({name: statistics(*values) for name in names} for values in ((10, 1000), (14, 1400)))
    assert growth(before, after)["embedder"] == ModelTimes(4, 100.0, 100.0, 300.0)
    with pytest.raises(UsageError, match="embedding answered no request"):
        growth(before, before)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--loads", "65x1@1"], "--loads 65x1@1: the model takes at most 64 tokens"),
        (["--loads", "2x1@1"], "--loads 2x1@1: no text has a length of 2 tokens"),
        (["--loads", "much"], "--loads: 'much' is not"),
        (["--plot", "/nowhere/plot"], "--plot: there is no folder"),
        (["--loads", "9x1025@1"], "--loads 9x1025@1: the server takes 1024 sentences a request"),
        (["--server", "127.0.0.1:1", "--loads", "9x1@1"], "no server answers at 127.0.0.1:1"),
        (["--metrics", "127.0.0.1:1"], "--metrics is for a running server"),
        (["--server", "127.0.0.1:1", "--", "--replicas", "2"], "--replicas is for the server that is started"),
    ],
)
def test_what_can_not_be_done_is_one_line_and_exit_code_2(
    options: list[str],
    said: str,
    shelf: ModelShelf,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("tritonembed_perf.run.target.QUESTION_TIMEOUT_S", 0.2)
    monkeypatch.setattr(traced_server, "running_server", lambda *_: pytest.fail("it started"))
    with pytest.raises(SystemExit) as ended:
        main(["overhead", "--model", str(shelf("bert")), *options])
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.parametrize(
    ("model", "loads", "said"),
    [
        ("bert", "9x129@1", "--loads 9x129@1: the server takes 128 sentences a request"),
        ("roberta", "9x1@1", "the server's vectors have 64 dimensions, those of roberta 128"),
        ("bert", "9x1@1", "gives no statistics of embedding"),
    ],
)
def test_a_server_that_is_not_one_to_measure_is_refused_before_the_load(
    model: str, loads: str, said: str, shelf: ModelShelf, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeKServe(shelf("bert"), 64)
    try:
        with pytest.raises(SystemExit) as ended:
            main(["overhead", "--model", str(shelf(model)), "--server", fake.target, "--loads", loads])
    finally:
        fake.close()
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line
    assert len(fake.sizes) <= 1


def test_ctrl_c_shows_the_loads_that_were_measured(
    shelf: ModelShelf, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def send(_server: str, _metrics: str, load: ShapeLoad, *_: object) -> Any:
        if load.tokens == 20:
            raise KeyboardInterrupt
        models = {name: ModelTimes(1, 3.0 * MS, 0.0, 1.0 * MS) for name in ("embedding", "tokenizer", "embedder")}
        return Measured({"a": ClientTimes(MS, 0, 9 * MS, MS)}, models, EngineTimes(0.0, 1.0 * MS))

    monkeypatch.setattr(measuring, "_send", send)
    monkeypatch.setattr("tritonembed_perf.run.suitable.check_server", lambda *_: None)
    path = tmp_path / "overhead.json"
    arguments = ["--server", "h:1", "--loads", "9x1@1,20x1@1,30x1@1", "--json", str(path)]
    with pytest.raises(SystemExit) as ended:
        main(["overhead", "--model", str(shelf("bert")), *arguments])
    assert ended.value.code == 130
    said = capsys.readouterr().out
    assert "9x1@1" in said
    assert "interrupted" in said
    report = json.loads(path.read_text())
    assert report["interrupted"]
    assert [row["load"] for row in report["rows"]] == ["9x1@1"]


def test_a_server_that_does_not_start_says_why(
    shelf: ModelShelf, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def end(*_: object) -> None:
        raise ServerEndedError(2, "tritonembed-manager: unknown option --misspelt")

    monkeypatch.setattr(traced_server, "running_server", end)
    with pytest.raises(SystemExit) as ended:
        main(["overhead", "--model", str(shelf("bert")), "--loads", "9x1@1", "--", "--misspelt", "1"])
    assert ended.value.code == 2
    assert "the server does not start: tritonembed-manager: unknown option --misspelt" in capsys.readouterr().err
