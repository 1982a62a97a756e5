"""Overload of a real manager: immediate refusals in both protocols, while admitted requests keep their latency.

The server is a fake with a fixed latency, so that the machine's speed does not matter.
"""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import httpx
import pytest
from tests.fakes.threaded import fake_triton
from tests.fakes.triton import FakeTriton, infer_request
from tests.integration.serve import Serve, serving

LATENCY_S = 0.2
NEVER_S = 3600.0
ROOM = 16
REFUSALS = 320
PATH = "/inference.GRPCInferenceService/ModelInfer"
MESSAGE = infer_request(b"a text").SerializeToString()


@pytest.fixture(scope="module")
def server() -> Iterator[FakeTriton]:
    """The fake. Each test sets its latency."""
    with fake_triton() as fake:
        yield fake


@pytest.fixture(scope="module")
def manager(server: FakeTriton) -> Iterator[Serve]:
    """A manager whose two workers together admit ROOM requests."""
    options = [f"--max-in-flight={ROOM}", "--workers=2", "--health-interval=3600"]
    with serving("--server", server.address, *options) as started:
        yield started


class Crowd:
    """Callers over gRPC, and the seconds of their answers."""

    def __init__(self, target: str) -> None:
        self._target = target
        self.accepted: list[float] = []
        self.refused: list[float] = []
        self.told: list[float] = []
        """The seconds after which to retry, of each refusal."""

    @asynccontextmanager
    async def calling(self, callers: int) -> AsyncIterator[None]:
        """In the `with`, this number of callers send one request after the other, over 8 connections."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.aio.insecure_channel(self._target, options) for _ in range(8)]
        tasks = [asyncio.ensure_future(self._call(channels[number % 8].unary_unary(PATH))) for number in range(callers)]
        try:
            yield
            assert not any(task.done() for task in tasks), next(task for task in tasks if task.done())
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for channel in channels:
                await channel.close()

    async def _call(self, infer: grpc.aio.UnaryUnaryMultiCallable) -> None:
        while True:
            began = time.monotonic()
            try:
                await infer(MESSAGE, timeout=60)
                self.accepted.append(time.monotonic() - began)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
                self.refused.append(time.monotonic() - began)
                trailing = dict(error.trailing_metadata() or ())
                self.told.append(int(trailing["grpc-retry-pushback-ms"]) / 1e3)
                assert self.told[-1] > 0
                # A well-behaved caller waits for the given time. This caller only lets the others run.
                await asyncio.sleep(0.05)


async def reach(values: list[float], count: int) -> None:
    """Wait for `count` more values."""
    count += len(values)
    async with asyncio.timeout(60):
        while len(values) < count:
            await asyncio.sleep(0.01)


def test_refusals_wait_for_no_answer_and_leave_nothing_behind(manager: Serve, server: FakeTriton) -> None:
    server.latency = NEVER_S
    admitted, crowd = Crowd(manager.target), Crowd(manager.target)

    async def run() -> int:
        async with admitted.calling(ROOM):
            await asyncio.to_thread(manager.until, lambda: server.inside == ROOM, 30)
            before = memory(manager)
            # Nothing is answered, so a refusal that waited for a slot would never come.
            async with crowd.calling(8):
                await reach(crowd.refused, REFUSALS)
            assert (admitted.refused, admitted.accepted, crowd.accepted) == ([], [], [])
            assert server.inside == ROOM
            return memory(manager) - before

    assert asyncio.run(run()) < 32 << 20
    assert statistics.median(crowd.refused) < LATENCY_S / 2
    manager.until(lambda: manager.status()["totals"]["in_flight"] == 0, limit=30)


def test_admitted_requests_keep_their_latency(manager: Serve, server: FakeTriton) -> None:
    """The control is the latency without a manager, at the same time."""
    server.latency = LATENCY_S
    direct, crowd = Crowd(server.address), Crowd(manager.target)

    async def run() -> None:
        async with direct.calling(8), crowd.calling(3 * ROOM):
            await reach(crowd.accepted, 8 * ROOM)

    asyncio.run(run())
    assert crowd.refused
    assert statistics.median(crowd.accepted) < 1.4 * statistics.median(direct.accepted)
    manager.until(lambda: manager.status()["totals"]["in_flight"] == 0, limit=30)


def test_the_time_of_a_retry_is_true_within_a_factor_of_two(manager: Serve, server: FakeTriton) -> None:
    server.latency = 2 * LATENCY_S
    crowd = Crowd(manager.target)

    async def run() -> float:
        async with crowd.calling(3 * ROOM):
            # Until the pace is known.
            await reach(crowd.accepted, 5 * ROOM)
            crowd.told.clear()
            began = time.monotonic()
            await reach(crowd.accepted, 5 * ROOM)
            return time.monotonic() - began

    pace = 5 * ROOM / asyncio.run(run())
    ratio = statistics.median(crowd.told) / (ROOM / 2 / pace)
    assert 0.5 < ratio < 2, ratio
    manager.until(lambda: manager.status()["totals"]["in_flight"] == 0, limit=30)


def test_over_http_overload_is_429_with_the_time_of_a_retry(manager: Serve, server: FakeTriton) -> None:
    server.latency = NEVER_S

    async def run() -> None:
        async with Crowd(manager.target).calling(ROOM):
            await asyncio.to_thread(manager.until, lambda: server.inside == ROOM, 30)
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{manager.http_port}", timeout=60) as client:
                for _ in range(20):
                    answer = await client.post("/v1/embeddings", json={"input": "a text"})
                    assert answer.status_code == 429, answer.text
                    assert int(answer.headers["Retry-After"]) >= 1
                    assert answer.json()["error"]["message"].startswith("overloaded")

    asyncio.run(run())


def memory(manager: Serve) -> int:
    """Resident bytes of the manager's processes."""
    pages = (int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) for process in manager.family())
    return sum(pages) * 4096
