"""The engine's counts from a metrics port: over real HTTP, twice per second, sometimes another server's."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tritonembed_perf import overhead
from tritonembed_perf.failures import UsageError
from tritonembed_perf.overhead import read_counters, read_counters_after

Serve = Callable[..., str]


ENGINE = (overhead.EMBEDDED, overhead.ENGINE_QUEUE, overhead.ENGINE_COMPUTE)


def page(requests: float, queue: float, compute: float, labels: str = 'instance="embedder_0_0"') -> str:
    """A scrape: the engine's counters, and Triton's, which are all 7."""
    samples = [f"{name}{{{labels}}} {n}" for name, n in zip(ENGINE, (requests, queue, compute), strict=True)]
    samples += [f'{name}{{model="{model}",version="1"}} 7' for name, model in overhead.COUNTERS if model]
    head = "# HELP tritonembed_embedded_requests_total Requests embedded"
    return "\n".join([head, *samples, 'nv_inference_count{model="embedder"} 5', ""])


def engine(counters: dict[tuple[str, str], float]) -> list[float]:
    """The engine's part."""
    return [counters[name, ""] for name in ENGINE]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server that serves each page once and the last page for ever. Returns its host:port."""
    made: list[ThreadingHTTPServer] = []

    def start(*pages: str, status: int = 200) -> str:
        left = list(pages)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                text = left.pop(0) if len(left) > 1 else left[0]
                self.send_response(status if self.path == "/metrics" else 404)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                pass

        made.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=made[-1].serve_forever, daemon=True).start()
        return f"127.0.0.1:{made[-1].server_port}"

    yield start
    for server in made:
        server.shutdown()
        server.server_close()


def test_instances_and_servers_are_summed(serve: Serve) -> None:
    pages = page(3, 0.5, 2) + page(4, 0.25, 1e-3, 'server="b",instance="embedder_0_1"')
    counters = read_counters(serve(pages))
    assert engine(counters) == [7, 0.75, 2.001]
    assert {counters[key] for key in overhead.COUNTERS if key[1]} == {14}


def test_counts_are_awaited_and_then_read_once_more(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "PERIOD_SECONDS", 0.01)
    # The third reading is in the middle of a hand-over: requests are counted already, their times are not.
    metrics = serve(page(5, 1, 1), page(9, 2, 5), page(15, 2, 5), page(15, 3, 9))
    assert engine(read_counters_after(metrics, {(overhead.EMBEDDED, ""): 5.0}, 10)) == [15, 3, 9]


def test_metrics_of_another_server_are_refused(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "PERIOD_SECONDS", 0.01)
    monkeypatch.setattr(overhead, "PATIENCE_S", 0.1)
    with pytest.raises(UsageError, match="counted 2 of 10 requests: is it the server that answers them"):
        read_counters_after(serve(page(7, 1, 1)), {(overhead.EMBEDDED, ""): 5.0}, 10)


def test_a_place_without_the_engines_metrics_is_one_line(serve: Serve) -> None:
    with pytest.raises(UsageError, match="has no tritonembed_embedded_requests_total"):
        read_counters(serve("nv_inference_count 5\n"))
    with pytest.raises(UsageError, match="/metrics answers with 503"):
        read_counters(serve("", status=503))
    for nowhere in ("127.0.0.1:1", "127.0.0.1:port"):
        with pytest.raises(UsageError, match=f"nothing answers at http://{nowhere}/metrics; --metrics says"):
            read_counters(nowhere)
