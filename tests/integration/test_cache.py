"""The cache of vectors on a real server, and tenants that share none of it through a manager."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
from tests.fakes.tenants import key_of, write_tenants
from tests.integration.serve import Serve, running_server, serving
from tests.integration.test_engine_metrics import counters, until

from tritonembed_perf.server import RunningServer
from tritonembed_protocol.types import OUTPUT_TYPES

TEXTS = ["bread is baked in an oven", "the train is late", "bread is baked in an oven", "naïve café 中文"]
DIMENSIONS = 64
CACHE_BYTES = 64 * 1024
"""Room for about 100 vectors."""


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[RunningServer]:
    options = ["--device=cpu", "--workers=1", "--no-reference", f"--cache-bytes={CACHE_BYTES}"]
    with running_server(str(model), options) as running:
        yield running


Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def ask(server: RunningServer) -> Iterator[Ask]:
    with tritonclient.grpc.InferenceServerClient(server.target) as client:

        def infer(texts: list[str] = TEXTS, model: str = "embedding", **parameters: Any) -> list[bytes]:
            tensor = tritonclient.grpc.InferInput("text", [len(texts), 1], "BYTES")
            tensor.set_data_from_numpy(np.array([[text.encode()] for text in texts], dtype=np.object_))
            answer = client.infer(model, [tensor], parameters=parameters)
            name = "embedding" if model == "embedding" else "chunk_embeddings"
            assert answer.as_numpy("num_tokens").min() > 0
            return [bytes(row) for row in answer.as_numpy(name).ravel()]

        yield infer


class Counts:
    """By how much the counters of the cache have grown since the last look."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self._seen = self._now()

    def assert_grown(self, hits: int, shared: int, misses: int) -> None:
        """Looks when as many sentences were counted as expected; the counters are handed over together."""
        expected = [hits, shared, misses]
        until(lambda: sum(self._grown()) >= sum(expected))
        assert self._grown() == expected
        self._seen = self._now()

    def _grown(self) -> list[float]:
        return [now - seen for now, seen in zip(self._now(), self._seen, strict=True)]

    def _now(self) -> list[float]:
        found = counters(self._server)
        return [found[f"cache_{name}_total"] for name in ("hits", "shared", "misses")]


def test_every_output_type_has_the_same_bytes_with_and_without_the_cache(server: RunningServer, ask: Ask) -> None:
    counts = Counts(server)
    ask(cache_salt="types")
    counts.assert_grown(hits=0, shared=1, misses=3)
    asked = 0
    for kind in OUTPUT_TYPES:
        for more in ({}, {"dimensions": 24}, *([{"normalize": False}] if not OUTPUT_TYPES[kind].unit_length else [])):
            fresh = ask(embedding_type=kind, cache=False, **more)
            assert ask(embedding_type=kind, cache_salt="types", **more) == fresh
            assert fresh[0] == fresh[2] != fresh[1]
            asked += len(TEXTS)
    # One entry per text has all of them.
    counts.assert_grown(hits=asked, shared=0, misses=0)


def test_prompts_cuts_and_chunks_have_entries_of_their_own(server: RunningServer, ask: Ask) -> None:
    long = " ".join(f"bread {number}" for number in range(60))
    counts = Counts(server)
    for parameters in (
        {"input_type": "query"},
        {"input_type": "passage"},
        {"truncate": "START"},
        {"truncate": "CHUNK"},
        {"model": "embedding_chunks", "truncate": "CHUNK", "chunk_tokens": 32},
    ):
        entries = 1
        if parameters.get("truncate") == "CHUNK":
            [vectors] = ask([long], cache=False, **{**parameters, "model": "embedding_chunks"})
            entries = len(vectors) // (4 * DIMENSIONS)
            assert entries > 1
        fresh = ask([long], cache=False, **parameters)
        for _ in range(2):
            assert ask([long], cache_salt="ways", **parameters) == fresh
        counts.assert_grown(hits=entries, shared=0, misses=entries)


def test_sparse_weights_and_token_vectors_are_computed_each_time(server: RunningServer, ask: Ask) -> None:
    counts = Counts(server)
    ask(["a text"], cache_salt="outputs")
    for _ in range(2):
        ask(["a text"], outputs="dense,sparse,multi_vector", cache_salt="outputs")
    ask(["a text"], cache_salt="outputs")
    counts.assert_grown(hits=1, shared=0, misses=1)


def test_memory_is_bounded_and_what_was_evicted_is_computed_again(server: RunningServer, ask: Ask) -> None:
    counts = Counts(server)
    first = ask(["the first"], cache_salt="bound")
    before = counters(server)["cache_evictions_total"]
    for start in range(0, 320, 64):
        ask([f"text {number}" for number in range(start, start + 64)], cache_salt="bound")
    assert ask(["the first"], cache_salt="bound") == first
    counts.assert_grown(hits=0, shared=0, misses=322)
    found = counters(server)
    assert found["cache_evictions_total"] > before
    assert 0.8 * CACHE_BYTES < found["cache_bytes"] <= CACHE_BYTES


def test_a_wrong_parameter_is_refused_in_one_line(ask: Ask) -> None:
    for parameters, reason in (
        ({"cache": "no"}, "cache: must be a bool"),
        ({"cache_salt": "x" * 129}, "cache_salt: must be a string of at most 128 characters"),
    ):
        with pytest.raises(tritonclient.grpc.InferenceServerException) as caught:
            ask(**parameters)
        assert caught.value.message().endswith(reason)


@pytest.fixture(scope="module")
def manager(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    tenants = write_tenants(tmp_path_factory.mktemp("tenants") / "tenants.yaml", one="", other="")
    with serving("--model=m", "--server", server.target, f"--tenants={tenants}") as started:
        yield started


def test_a_tenant_gets_nothing_from_what_another_has_sent(server: RunningServer, manager: Serve) -> None:
    with tritonclient.grpc.InferenceServerClient(manager.target) as client:

        def ask(tenant: str, **parameters: str) -> bytes:
            tensor = tritonclient.grpc.InferInput("text", [1, 1], "BYTES")
            tensor.set_data_from_numpy(np.array([[b"a secret of a tenant"]], dtype=np.object_))
            headers = {"authorization": f"Bearer {key_of(tenant)}"}
            answer = client.infer("embedding", [tensor], headers=headers, parameters=parameters)
            return bytes(answer.as_numpy("embedding").item())

        counts = Counts(server)
        vectors = [ask("one"), ask("other"), ask("one"), ask("one", cache_salt="a user")]
    counts.assert_grown(hits=1, shared=0, misses=3)
    assert len(set(vectors)) == 1
