"""The engine's metrics on a real server."""

import time
import urllib.request
from collections.abc import Callable

import pytest

from tritonembed import EmbeddingClient
from tritonembed_perf.server import RunningServer

TEXTS = ["one", "two words", "cut " * 100]
TOKENS = 3 + 4 + 64


@pytest.fixture(scope="module")
def controlled(second_server: Callable[[], RunningServer]) -> RunningServer:
    """The server that tests may harm: nobody else sends requests to it now."""
    return second_server()


def settled(server: RunningServer) -> dict[str, float]:
    """The counters once they no longer change. They are updated twice per second."""
    seen, now = {}, counters(server)
    while seen != now:
        time.sleep(1.2)
        seen, now = now, counters(server)
    return now


def until(holds: Callable[[], bool], limit: float = 60) -> None:
    end = time.monotonic() + limit
    while not holds():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.1)


def counters(server: RunningServer) -> dict[str, float]:
    """Our counters, summed over instances. The executor's metric keeps its labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics") as answer:
        lines = [line for line in answer.read().decode().splitlines() if line.startswith("tritonembed_")]
    found: dict[str, float] = {}
    for line in lines:
        labelled, value = line.rsplit(" ", 1)
        name = labelled if "executor=" in labelled else labelled.partition("{")[0].removeprefix("tritonembed_")
        found[name] = found.get(name, 0) + float(value)
    return found


def test_the_engines_metrics_count_requests_sentences_and_tokens(controlled: RunningServer) -> None:
    before = settled(controlled)
    with EmbeddingClient(controlled.target) as client:
        client.embed(TEXTS)

    def grown() -> dict[str, float]:
        now = counters(controlled)
        return {name: now[name] - before[name] for name in now}

    # These two counters are updated last.
    until(lambda: grown()["request_compute_seconds_total"] > 0 and grown()["truncated_sentences_total"] > 0)
    added = grown()
    assert (added["sentences_total"], added["tokens_total"], added["batches_total"]) == (len(TEXTS), TOKENS, 1)
    assert (added["tokenized_sentences_total"], added["truncated_sentences_total"]) == (len(TEXTS), 1)
    assert added["batch_capacity_tokens_total"] >= TOKENS
    assert 0 <= added["queue_seconds_total"] < 10
    assert 0 < added["compute_seconds_total"] < 10
    assert added["embedded_requests_total"] == 1
    # For one request in one batch, both are the same seconds.
    assert added["request_compute_seconds_total"] == pytest.approx(added["compute_seconds_total"], rel=1e-6)
    [executor] = [name for name in before if "executor=" in name]
    assert 'executor="openvino"' in executor
    assert before[executor] == 1
