"""The largest memory of a worker, whatever arrives: proportional set size of real processes."""

import asyncio
import json
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import aiohttp
import pytest
from tests.fakes.http2 import RawCalls
from tests.fakes.threaded import fake_triton
from tests.integration.serve import serving
from tests.processes import children

from tritonembed import AsyncEmbeddingClient

MEBIBYTE = 1024 * 1024
LIMIT = 1536 * MEBIBYTE
INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
ENCODE = "/arctic_inference.InferenceService/Encode"


def pss(pid: int) -> int:
    """The proportional set size of a process, in bytes."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


class Watch:
    """The largest memory of a worker and its children, and the latencies of single sentences meanwhile."""

    def __init__(self, manager) -> None:
        self._manager = manager
        self.most = 0
        self.latencies: list[float] = []
        self.errors: list[str] = []

    async def __aenter__(self):
        [self._worker] = self._manager.workers()
        self._tasks = [asyncio.ensure_future(self._measure()), asyncio.ensure_future(self._embed())]
        return self

    async def __aexit__(self, *_):
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _measure(self):
        while True:
            self.most = max(self.most, sum(map(pss, [self._worker, *children(self._worker)])))
            await asyncio.sleep(0.05)

    async def _embed(self):
        async with AsyncEmbeddingClient(self._manager.target) as client:
            while True:
                began = time.monotonic()
                try:
                    await client.embed(["a sentence"], timeout=20)
                except Exception as error:
                    self.errors.append(repr(error))
                self.latencies.append(time.monotonic() - began)
                await asyncio.sleep(0.02)


async def grpc_attack(manager, path):
    """Thirty messages of 60 MiB that never end, over six connections."""
    async with AsyncExitStack() as stack:
        calls = [await stack.enter_async_context(RawCalls(manager.port)) for _ in range(6)]
        begun = [
            asyncio.ensure_future(connection.begin(path, 60 * MEBIBYTE, 60 * MEBIBYTE - 1))
            for connection in calls
            for _ in range(5)
        ]
        await asyncio.wait(begun, timeout=15)
        await asyncio.sleep(2)
        for task in begun:
            task.cancel()
        await asyncio.gather(*begun, return_exceptions=True)


async def http_attack(manager, body, headers):
    """Thirty bodies at once, whose last byte is sent late."""
    url = f"http://127.0.0.1:{manager.http_port}/v1/embeddings"

    async def slow():
        for at in range(0, len(body) - 1, MEBIBYTE):
            yield body[at : min(at + MEBIBYTE, len(body) - 1)]
        await asyncio.sleep(3)
        yield body[-1:]

    async def post(session):
        with suppress(aiohttp.ClientError):
            async with session.post(url, data=slow(), headers=headers) as answer:
                await answer.read()

    async with aiohttp.ClientSession(trust_env=False) as session:
        posts = [asyncio.ensure_future(post(session)) for _ in range(30)]
        await asyncio.wait(posts, timeout=40)
        for task in posts:
            task.cancel()
        await asyncio.gather(*posts, return_exceptions=True)


TEXTS = json.dumps({"input": ["word " * 400] * 30_000}).encode()
EMPTY_LISTS = b'{"input":[' + b"[]," * 20_000_000 + b"[]]}"
JSON = {"Content-Type": "application/json"}
ATTACKS = {
    "gRPC messages that never end": lambda manager: grpc_attack(manager, INFER),
    "the same on streams": lambda manager: grpc_attack(manager, STREAM),
    "the same of Arctic's": lambda manager: grpc_attack(manager, ENCODE),
    "large JSON": lambda manager: http_attack(manager, TEXTS, JSON),
    "JSON of empty lists": lambda manager: http_attack(manager, EMPTY_LISTS, JSON),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("attack", ATTACKS)
async def test_a_worker_holds_at_most_one_and_a_half_gibibytes_whatever_arrives(attack: str) -> None:
    with fake_triton() as fake, serving(f"--server={fake.address}", "--log-format=json") as manager:
        async with Watch(manager) as watch:
            await asyncio.sleep(2)
            alone = sorted(watch.latencies)
            before, watch.latencies, watch.most = watch.most, [], 0
            await ATTACKS[attack](manager)
        during = sorted(watch.latencies)
        print(
            f"\n{attack}: {before >> 20} -> {watch.most >> 20} MiB; single sentences alone "
            f"p99 {alone[int(len(alone) * 0.99)] * 1e3:.0f} ms, beside p50 {during[len(during) // 2] * 1e3:.0f} "
            f"p99 {during[int(len(during) * 0.99)] * 1e3:.0f} max {during[-1] * 1e3:.0f} ms; "
            f"{len(watch.errors)} errors of {len(during)} {watch.errors[:2]}"
        )
        assert watch.most <= LIMIT
