"""A client of two real servers, without a manager: both embed, one is killed, and no request fails."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient

from tritonembed import AsyncEmbeddingClient, EmbeddingClient, EmbeddingResult
from tritonembed_manager.server.process import family, process_table
from tritonembed_perf.server import RunningServer

TEXTS = [f"text {number} of many {'and some more words ' * (number % 7)}" for number in range(3000)]


@pytest.fixture(scope="module")
def victim(second_server: Callable[[], RunningServer]) -> RunningServer:
    """A second server of the session's model, to be killed."""
    return second_server()


@pytest.fixture(scope="module")
def expected(client: EmbeddingClient) -> EmbeddingResult:
    """The session's server's vectors of the texts."""
    return client.embed(TEXTS)


def check(result: EmbeddingResult, expected: EmbeddingResult) -> None:
    assert np.array_equal(result.num_tokens, expected.num_tokens)
    # Batches differ from server to server, and so may the last digits.
    np.testing.assert_allclose(result.embeddings, expected.embeddings, atol=1e-5)


@pytest.mark.parametrize("policy", ["round_robin", "least_loaded"])
def test_both_servers_compute_their_share_of_the_vectors(
    server: RunningServer, victim: RunningServer, expected: EmbeddingResult, policy: str
) -> None:
    before = [inferences(each) for each in (server, victim)]
    with EmbeddingClient([server.target, victim.target], policy=policy) as client:
        check(client.embed(TEXTS, batch_size=16), expected)
        assert [each.load for each in client._transport._router.upstreams] == [0, 0]
    shares, until = [0, 0], time.monotonic() + 30
    # Triton counts a request after it has sent the answer.
    while sum(shares) < len(TEXTS) and time.monotonic() < until:
        shares = [inferences(each) - start for each, start in zip((server, victim), before, strict=True)]
    assert sum(shares) == len(TEXTS)
    assert min(shares) > len(TEXTS) // 10


def inferences(server: RunningServer) -> int:
    """Sentences that the server has embedded, by its own count."""
    with InferenceServerClient(server.target) as triton:
        [statistics] = triton.get_inference_statistics("embedding").model_stats
        return int(statistics.inference_count)


def test_an_interactive_request_is_accepted(client: EmbeddingClient, expected: EmbeddingResult) -> None:
    check(client.embed(TEXTS[:2], priority="interactive"), EmbeddingResult(*(part[:2] for part in expected)))


def test_no_request_fails_if_a_server_is_killed_under_load(
    server: RunningServer, victim: RunningServer, expected: EmbeddingResult
) -> None:
    targets = [server.target, victim.target]
    blocking, asynchronous = EmbeddingClient(targets), AsyncEmbeddingClient(targets)
    results: dict[str, EmbeddingResult] = {}

    def run_blocking() -> None:
        results["blocking"] = blocking.embed(TEXTS, batch_size=8, timeout=60)

    async def embed() -> EmbeddingResult:
        async with asynchronous:
            return await asynchronous.embed(TEXTS, batch_size=8, timeout=60)

    def run_asynchronous() -> None:
        results["asynchronous"] = asyncio.run(embed())

    with blocking:
        threads = [threading.Thread(target=run) for run in (run_blocking, run_asynchronous)]
        for thread in threads:
            thread.start()
        triton = next(each for each in family(victim.process.pid, process_table()) if each.name == "tritonserver")
        end = time.monotonic() + 30
        while not all(client._transport._router.upstreams[1].load for client in (blocking, asynchronous)):
            assert time.monotonic() < end, "nothing was in flight at the server that is to be killed"
        os.kill(triton.pid, signal.SIGKILL)
        for thread in threads:
            thread.join()
        assert results.keys() == {"blocking", "asynchronous"}
        for result in results.values():
            check(result, expected)
        for client in (blocking, asynchronous):
            assert [each.load for each in client._transport._router.upstreams] == [0, 0]
            assert client._transport._router.upstreams[1].failures > 0
        check(blocking.embed(TEXTS[:64]), EmbeddingResult(*(part[:64] for part in expected)))
    victim.process.wait(30)
