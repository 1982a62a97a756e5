"""Explicit model control on a real model: unload frees its memory, load serves the same; and what its metrics say."""

import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient

from tritonembed import EmbeddingClient, TritonEmbedError
from tritonembed_perf.memory import server_memory_mib
from tritonembed_perf.server import RunningServer

TEXTS = ["one", "two words", "cut " * 100]
TOKENS = 3 + 4 + 64
MODELS = ("embedding", "tokenizer", "embedder")


@pytest.fixture(scope="module")
def controlled(second_server: Callable[[], RunningServer]) -> RunningServer:
    """A server whose models are loaded and unloaded on demand."""
    return second_server()


def until(holds: Callable[[], bool], limit: float = 20) -> None:
    end = time.monotonic() + limit
    while not holds():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.1)


def counters(server: RunningServer) -> dict[str, float]:
    """Ours, summed over instances; of the executor its line."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics") as answer:
        lines = [line for line in answer.read().decode().splitlines() if line.startswith("tritonembed_")]
    found: dict[str, float] = {}
    for line in lines:
        labelled, value = line.rsplit(" ", 1)
        name = labelled if "executor=" in labelled else labelled.partition("{")[0].removeprefix("tritonembed_")
        found[name] = found.get(name, 0) + float(value)
    return found


def test_the_engines_metrics_count_what_was_asked(controlled: RunningServer) -> None:
    time.sleep(1)  # Counts are handed over twice a second: READY's inference is in.
    before = counters(controlled)
    with EmbeddingClient(controlled.target) as client:
        client.embed(TEXTS)

    def grown() -> dict[str, float]:
        now = counters(controlled)
        return {name: now[name] - before[name] for name in now}

    # The last of those that are handed over.
    until(lambda: grown()["request_compute_seconds_total"] > 0 and grown()["truncated_sentences_total"] > 0)
    added = grown()
    assert (added["sentences_total"], added["tokens_total"], added["batches_total"]) == (len(TEXTS), TOKENS, 1)
    assert (added["tokenized_sentences_total"], added["truncated_sentences_total"]) == (len(TEXTS), 1)
    assert added["batch_capacity_tokens_total"] >= TOKENS
    assert 0 <= added["queue_seconds_total"] < 10
    assert 0 < added["compute_seconds_total"] < 10
    assert added["embedded_requests_total"] == 1
    # One request in one batch: the two are the same seconds.
    assert added["request_compute_seconds_total"] == pytest.approx(added["compute_seconds_total"], rel=1e-6)
    [executor] = [name for name in before if "executor=" in name]
    assert 'executor="direct"' in executor
    assert before[executor] == 1


def test_unload_frees_the_models_memory_and_load_serves_the_same_vectors(controlled: RunningServer) -> None:
    with EmbeddingClient(controlled.target) as client, InferenceServerClient(controlled.target) as triton:
        vectors = client.embed(TEXTS).embeddings
        [triton_pid] = [pid for pid in children(controlled.process.pid) if name_of(pid) == "tritonserver"]
        loaded, stubs = server_memory_mib(triton_pid), len(children(triton_pid))
        for model in MODELS:
            triton.unload_model(model)
        until(lambda: not children(triton_pid))
        assert "Segfault" not in controlled.read_log()
        unloaded = server_memory_mib(triton_pid)
        # The rest is Triton itself; a process with torch and vLLM takes several hundred MiB.
        assert unloaded < loaded / 2
        with pytest.raises(TritonEmbedError):
            client.embed(["gone"])
        for model in reversed(MODELS):
            triton.load_model(model)
        assert np.abs(client.embed(TEXTS).embeddings - vectors).max() <= 1e-6
        assert len(children(triton_pid)) == stubs
    assert controlled.process.poll() is None


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()
