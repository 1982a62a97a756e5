"""Response senders on a real server, as a GPU replica uses them for large requests."""

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tests.processes import model_stubs
from tritonclient.grpc import InferenceServerClient

from tritonembed import EmbeddingClient, InvalidArgumentError
from tritonembed_engine.stub.senders import LARGE_SENTENCES
from tritonembed_manager.server.process import family, process_table
from tritonembed_manager.server.repository import render
from tritonembed_manager.server.settings import RenderSettings
from tritonembed_perf.server import RunningServer, running_server

SHARED_MEMORY = Path("/dev/shm")
TEXTS = [f"sentence {number} of some words" + " and more" * (number % 7) for number in range(4 * LARGE_SENTENCES)]


@pytest.fixture(scope="module")
def server_that_sends(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server of one replica that accepts two batches in advance."""
    repository = tmp_path_factory.mktemp("sending") / "model_repository"
    render(repository, RenderSettings(model=str(model), device="cpu", tokenizer_instances=1))
    settings = json.loads((repository / "model.json").read_text())
    settings.setdefault("engine", {})["batches_ahead"] = 2
    (repository / "model.json").write_text(json.dumps(settings))
    with running_server(None, ["--model-repository", str(repository)]) as server:
        yield server


@pytest.fixture(scope="module")
def sending(server_that_sends: RunningServer) -> Iterator[EmbeddingClient]:
    with EmbeddingClient(server_that_sends.target) as client:
        yield client


def test_triton_is_free_for_the_next_batch_during_a_computation(
    sending: EmbeddingClient, server_that_sends: RunningServer
) -> None:
    """Triton's statistics count the time in `execute`: only the hand-over, and for a list the whole computation."""
    with InferenceServerClient(server_that_sends.target) as triton:

        def in_execute() -> float:
            [model] = triton.get_inference_statistics("embedder").model_stats
            return float(model.inference_stats.compute_infer.ns / 1e9)

        def share_in_execute() -> float:
            before, began = in_execute(), time.monotonic()
            sending.embed([" ".join(["word"] * 60)] * 1024, batch_size=1024)
            whole = time.monotonic() - began
            return (in_execute() - before) / whole

        # A busy machine may be late once.
        assert any(share_in_execute() < 1 / 4 for _ in range(3))


def test_many_large_requests_at_once_get_their_own_vectors(sending: EmbeddingClient, client: EmbeddingClient) -> None:
    expected = client.embed(TEXTS, batch_size=8).embeddings

    def embed(shift: int) -> None:
        texts = TEXTS[shift:] + TEXTS[:shift]
        result = sending.embed(texts, batch_size=2 * LARGE_SENTENCES)
        np.testing.assert_allclose(result.embeddings, np.roll(expected, -shift, axis=0), atol=1e-5)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(embed, range(24)))


def test_a_bad_request_among_large_requests_gets_its_own_error(sending: EmbeddingClient) -> None:
    def embed(number: int) -> str:
        try:
            sending.embed(TEXTS, dimensions=100_000 if number % 3 == 0 else None)
        except InvalidArgumentError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(9) as pool:
        said = list(pool.map(embed, range(9)))
    assert [("dimensions" in message) for message in said] == [number % 3 == 0 for number in range(9)]


def test_small_requests_among_large_requests_are_answered_as_a_list(sending: EmbeddingClient) -> None:
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda n: sending.embed(TEXTS if n % 2 else TEXTS[:1]).embeddings, range(16)))
    for many, one in zip(results[1::2], results[::2], strict=True):
        np.testing.assert_allclose(many[:1], one, atol=1e-5)


def test_a_dead_embedder_ends_the_server(server_that_sends: RunningServer) -> None:
    """This is the last test, because it ends the server. test_replica.py measures how soon."""
    manager = server_that_sends.process
    started = family(manager.pid, process_table())
    [embedder] = model_stubs(started, "embedder/")
    os.kill(embedder, signal.SIGKILL)
    code = manager.wait(30)
    assert (code, "'embedder' died" in server_that_sends.read_log().splitlines()[-1]) == (1, True)
    assert family(manager.pid, process_table(), started) == []
    assert not list(SHARED_MEMORY.glob(f"tritonembed_{manager.pid}_*"))
