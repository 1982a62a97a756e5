"""Overload of a real manager: immediate refusals in both protocols, while admitted requests keep their latency.

The server is a fake with a fixed latency, so that the machine's speed does not matter.
"""

import asyncio
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
from tests.fakes.threaded import fake_triton
from tests.fakes.triton import infer_request
from tests.integration.serve import Serve, serving

LATENCY_S = 0.2
ROOM = 16
REFUSALS = 300
REFUSED_WITHIN_S = 0.1
PATH = "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture(scope="module")
def manager() -> Iterator[Serve]:
    """A manager whose two workers together admit ROOM requests."""
    with (
        fake_triton(lambda fake: setattr(fake, "latency", LATENCY_S)) as server,
        serving(
            "--server", server.address, f"--max-in-flight={ROOM}", "--workers=2", "--health-interval=3600"
        ) as started,
    ):
        yield started


class Crowd:
    """Enough callers over gRPC to always fill ROOM, and their latencies."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._message = infer_request(b"a text").SerializeToString()
        self.accepted: list[float] = []
        self.refused: list[float] = []
        self.pushed_back = 0

    async def run(self, callers: int, until: int) -> None:
        """Runs the callers until this number of requests was answered."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.aio.insecure_channel(self._target, options) for _ in range(8)]
        try:
            calls = [channel.unary_unary(PATH) for channel in channels]
            await asyncio.gather(*(self._call(calls[number % 8], until) for number in range(callers)))
        finally:
            for channel in channels:
                await channel.close()

    async def _call(self, infer: grpc.aio.UnaryUnaryMultiCallable, until: int) -> None:
        while len(self.accepted) < until:
            began = time.monotonic()
            try:
                await infer(self._message, timeout=30)
                self.accepted.append(time.monotonic() - began)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
                self.refused.append(time.monotonic() - began)
                trailing = dict(error.trailing_metadata() or ())
                self.pushed_back += int(trailing["grpc-retry-pushback-ms"]) > 0
                # A well-behaved caller waits for the given time. This caller only lets the others run.
                await asyncio.sleep(0.05)


def test_refusals_are_immediate_and_admitted_requests_keep_their_latency(manager: Serve) -> None:
    calm, crowd = Crowd(manager.target), Crowd(manager.target)
    asyncio.run(calm.run(callers=ROOM, until=8 * ROOM))
    assert calm.refused == []
    before = _memory(manager)
    asyncio.run(crowd.run(callers=3 * ROOM, until=8 * ROOM))
    assert len(crowd.refused) >= REFUSALS
    assert crowd.pushed_back == len(crowd.refused)
    assert statistics.quantiles(crowd.refused, n=100)[98] < REFUSED_WITHIN_S
    assert statistics.median(crowd.accepted) < 1.2 * statistics.median(calm.accepted)
    # Memory is flat: refused requests leave nothing behind.
    assert _memory(manager) - before < 32 << 20
    manager.until(lambda: manager.status()["totals"]["in_flight"] == 0, limit=10)


def test_over_http_overload_is_429_with_the_time_of_a_retry(manager: Serve) -> None:
    async def run() -> None:
        crowd = Crowd(manager.target)
        filling = asyncio.ensure_future(crowd.run(callers=3 * ROOM, until=1_000_000))
        refused = []
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{manager.http_port}", timeout=30) as client:
            while len(refused) < 20:
                answer = await client.post("/v1/embeddings", json={"input": "a text"})
                if answer.status_code == 429:
                    assert int(answer.headers["Retry-After"]) >= 1
                    assert answer.json()["error"]["message"].startswith("overloaded")
                    refused.append(answer)
                else:
                    assert answer.status_code == 200, answer.text
        filling.cancel()
        await asyncio.gather(filling, return_exceptions=True)

    asyncio.run(run())


def _memory(manager: Serve) -> int:
    """Resident bytes of the manager's processes."""
    pages = (int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) for process in manager.family())
    return sum(pages) * 4096
