"""The stages of a request, from Triton's metrics and the engine's."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.fakes.threaded import http_server
from tests.models import ModelShelf
from tests.unit.perf.fake_kserve import FakeKServe

from tritonembed_manager.tune.loads import LoadShape
from tritonembed_perf import overhead
from tritonembed_perf.cli import main
from tritonembed_perf.overhead import from_growth
from tritonembed_perf.server import ServerEndedError

STAGES = (
    "client encode",
    "wire",
    "tokenizer queue",
    "tokenizer",
    "embedder queue",
    "embedder",
    "between models",
    "client decode",
)
LIST = (3.0, 15.0)
"""The engine's times for requests answered as a list: Triton's 20 ms of computation include them."""


def grown(
    engine: tuple[float, float], requests: int = 2, **models: tuple[float, float, float]
) -> dict[tuple[str, str], float]:
    """The growth of all counters. engine: ms in queue and computing; models: ms in all, in queue, computing."""
    found = {(overhead.EMBEDDED, ""): float(requests)}
    for name, milliseconds in zip((overhead.ENGINE_QUEUE, overhead.ENGINE_COMPUTE), engine, strict=True):
        found[name, ""] = requests * milliseconds / 1e3
    for model, (total, queue, compute) in models.items():
        found[overhead.REQUESTS, model] = requests
        found[overhead.TOTAL, model] = requests * total * 1e3
        found[overhead.QUEUE, model] = requests * queue * 1e3
        for name in overhead.COMPUTE:
            found[name, model] = requests * compute / len(overhead.COMPUTE) * 1e3
    return found


def test_counters_make_up_the_whole_latency() -> None:
    models = {"embedding": (30.0, 0.0, 0.0), "tokenizer": (0.0, 1.0, 2.0), "embedder": (0.0, 5.0, 20.0)}
    stages = from_growth(40.0, 2.0, 3.0, grown(LIST, **models))
    assert list(stages) == list(STAGES)
    assert list(stages.values()) == pytest.approx([2, 10, 1, 2, 8, 17, 2, 3])


def test_requests_answered_through_response_senders_have_the_engines_times() -> None:
    """Triton measured a hand-over of 1 ms. Then the request waited in the engine for 40 ms and took 500 ms there."""
    models = {"embedding": (554.0, 0.0, 0.0), "tokenizer": (6.0, 2.0, 3.0), "embedder": (2.0, 1.0, 1.0)}
    stages = from_growth(560.0, 1.0, 1.0, grown((40.0, 500.0), 1, **models))
    assert (stages["embedder queue"], stages["embedder"]) == pytest.approx((41, 500))
    assert stages["between models"] == pytest.approx(554 - 5 - 541)
    assert sum(stages.values()) == pytest.approx(1 + 560 + 1)


def test_the_parts_add_up_to_the_whole_even_if_triton_counts_a_moment_twice() -> None:
    """Triton releases a request after its response was passed on, and counts that time in both places."""
    models = dict.fromkeys(overhead.MODELS, (40.0, 5.0, 20.0))
    stages = from_growth(28.0, 1.0, 1.0, grown(LIST, 1, **models))
    assert (stages["wire"], stages["between models"]) == pytest.approx((0, 0), abs=1e-9)
    assert sum(stages.values()) == pytest.approx(30)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--loads", "65x1@1"], "65x1@1: the model takes at most 64 tokens"),
        (["--loads", "2x1@1"], "2x1@1: no text has a length of 2 tokens"),
        (["--loads", "much"], "--loads: 'much' is not a load"),
        (["--plot", "/nowhere/plot"], "--plot: there is no folder"),
        (["--loads", "9x1025@1"], "9x1025@1: the server takes 1024 sentences a request"),
        (["--server", "127.0.0.1:1", "--loads", "9x1@1"], "no server answers at 127.0.0.1:1"),
        (["--metrics", "127.0.0.1:1"], "--metrics is for a running server"),
        (["--server", "127.0.0.1:1", "--", "--replicas", "2"], "--replicas is for the server that is started"),
    ],
)
def test_impossible_options_are_one_line_and_exit_code_2(
    options: list[str],
    said: str,
    shelf: ModelShelf,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("tritonembed_perf.loadgen.target.QUESTION_TIMEOUT_S", 0.2)
    monkeypatch.setattr("tritonembed_perf.overhead.running_server", lambda *_: pytest.fail("it started"))
    with pytest.raises(SystemExit) as ended:
        main(["overhead", "--model", str(shelf("bert")), *options])
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.parametrize(
    ("model", "loads", "said"),
    [
        ("bert", "9x129@1", "9x129@1: the server takes 128 sentences a request"),
        ("roberta", "9x1@1", "the server's vectors have 64 dimensions, those of roberta 128"),
        ("bert", "9x1@1", "nothing answers at http://127.0.0.1:1/metrics"),
    ],
)
def test_a_server_that_can_not_be_measured_is_refused_before_the_load(
    model: str, loads: str, said: str, shelf: ModelShelf, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeKServe(shelf("bert"), 64)
    where = ["--server", fake.target, "--metrics", "127.0.0.1:1"]
    try:
        with pytest.raises(SystemExit) as ended:
            main(["overhead", "--model", str(shelf(model)), *where, "--loads", loads])
    finally:
        fake.close()
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line
    assert len(fake.sizes) <= 1


@contextmanager
def metrics_with_a_key(requests: list[int]) -> Iterator[str]:
    """Where a manager's counters are, which count the requests, for a tenant that may see them."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.headers["authorization"] == "Bearer te-secret" else 401)
            self.end_headers()
            for name, model in overhead.COUNTERS:
                self.wfile.write(f'{name}{{model="{model}"}} {len(requests)}\n'.encode())

        def log_message(self, *_: object) -> None:
            pass

    with http_server(ThreadingHTTPServer(("127.0.0.1", 0), Page)) as address:
        yield address


@pytest.mark.parametrize("key", ["te-secret", "te-other"])
def test_the_key_of_a_tenant_goes_to_the_manager_and_its_metrics(
    key: str, shelf: ModelShelf, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeKServe(shelf("bert"), 64)
    keys: set[object] = set()
    fake.on_request = lambda _number, _sentences, context: keys.add(
        dict(context.invocation_metadata()).get("authorization")
    )
    load = ["--loads", "9x1@1", "--requests", "3"]
    try:
        with metrics_with_a_key(fake.sizes) as metrics:
            where = ["--server", fake.target, "--metrics", metrics, "--api-key", key]
            with pytest.raises(SystemExit) as ended:
                main(["overhead", "--model", str(shelf("bert")), *where, *load])
    finally:
        fake.close()
    said = capsys.readouterr()
    assert keys == {f"Bearer {key}"}
    assert key not in said.out + said.err
    if key == "te-secret":
        assert (ended.value.code or 0) == 0
        assert "in all" in said.out
    else:
        assert "wants the key (--api-key) of a tenant with `monitor`" in said.err


def test_ctrl_c_shows_the_loads_that_were_measured(
    shelf: ModelShelf, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def measure(_server: str, _metrics: str, load: LoadShape, *_: object) -> dict[str, float]:
        if load.tokens == 20:
            raise KeyboardInterrupt
        return dict.fromkeys(STAGES, 1.0)

    monkeypatch.setattr(overhead, "measure", measure)
    monkeypatch.setattr("tritonembed_perf.loadgen.target.check_loads", lambda *_: None)
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


def test_a_server_that_does_not_start_is_reported_with_the_reason(
    shelf: ModelShelf, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def end(*_: object) -> None:
        raise ServerEndedError(2, "tritonembed-manager: unknown option --misspelt")

    monkeypatch.setattr("tritonembed_perf.overhead.running_server", end)
    with pytest.raises(SystemExit) as ended:
        main(["overhead", "--model", str(shelf("bert")), "--loads", "9x1@1", "--", "--misspelt", "1"])
    assert ended.value.code == 2
    assert "tritonembed-manager: unknown option --misspelt" in capsys.readouterr().err
