"""Single sentences during a large request: their p99 is at most three times the p99 without it, and under 300 ms.

Servers, the large request and the single sentences have their own processes, so that none slows another's measurement.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.integration.serve import Serve, serving

from tritonembed import AsyncEmbeddingClient

WINDOW_S = 8.0
"""The time in which sentences are sent, first without the request, then from its beginning on."""
_FAKE = """
import sys
from tests.fakes import threaded, triton
class Quick(triton.FakeTriton):
    async def _infer(self, request, _context):
        found = triton.texts(request)
        return triton.infer_response([triton.vector(text[:99]) for text in found], [1] * len(found))
threaded.FakeTriton = Quick
with threaded.fake_triton() as fake:
    print(fake.address, flush=True)
    sys.stdin.read()
"""
_POST = """
import sys, time, urllib.request
url, kind = sys.argv[1:]
body = {
    "texts": lambda: b'{"input":["' + b'","'.join([b"word " * 200_000] * 60) + b'"]}',
    "empty lists": lambda: b'{"input":[' + b"[]," * 20_000_000 + b"[]]}",
    "a long field": lambda: b'{"user":"' + b"a" * 60_000_000 + b'","input":"a"}',
    "numbers": lambda: b'{"input":[' + b"1," * 8_000_000 + b"1]}",
    "tensor": lambda: b'{"parameters":{"binary_data_output":true},"inputs":[{"name":"text","datatype":"BYTES",'
    b'"shape":[60,1],"data":["' + b'","'.join([b"word " * 200_000] * 60) + b'"]}]}',
}[kind]()
print(len(body), flush=True)
sys.stdin.readline()
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
began = time.monotonic()
try:
    status = opener.open(urllib.request.Request(url, body, {"Content-Type": "application/json"})).status
except urllib.error.HTTPError as error:
    status = error.code
print(status, time.monotonic() - began, flush=True)
"""
_WORK_ELSEWHERE = """
import json
body = b'{"input":["' + b'","'.join([b"word " * 200_000] * 60) + b'"]}'
while True:
    [text.encode() for text in json.loads(body)["input"]]
"""
"""Keeps the cores as busy during the measurement without the request as during that with it."""
KINDS = {
    "texts": "/v1/embeddings",
    "empty lists": "/v1/embeddings",
    "a long field": "/v1/embeddings",
    "numbers": "/v1/embeddings",
    "tensor": "/v2/models/embedding/infer",
}


@contextmanager
def script(text: str, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-c", text, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def attached(*fakes: "subprocess.Popen[str]") -> Iterator[Serve]:
    """A manager of two servers. The server with the large request gets fewer of the other requests."""
    servers = [f"--server={fake.stdout.readline().strip()}" for fake in fakes if fake.stdout]
    with serving(*servers, "--load-balancing=least_loaded") as manager:
        yield manager


async def latencies(target: str, over: asyncio.Event) -> list[float]:
    """Sorted latencies of single sentences."""
    found = []
    async with AsyncEmbeddingClient(target) as client:
        while not over.is_set():
            began = time.monotonic()
            await client.embed(["a sentence"], timeout=30)
            found.append(time.monotonic() - began)
            await asyncio.sleep(0.005)
    return sorted(found)


def p99(found: list[float]) -> float:
    return found[int(len(found) * 0.99)]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", KINDS)
async def test_single_sentences_wait_at_most_three_times_as_long_beside_60_mb_of_json(kind: str) -> None:
    with script(_FAKE) as one, script(_FAKE) as two, attached(one, two) as manager:
        url = f"http://127.0.0.1:{manager.http_port}{KINDS[kind]}"
        with script(_POST, url, kind) as first, script(_POST, url, kind) as second:
            for process in (first, second):
                process.stdout.readline()
            with script(_WORK_ELSEWHERE):
                over = asyncio.Event()
                measuring = asyncio.ensure_future(latencies(manager.target, over))
                await asyncio.sleep(WINDOW_S)
                over.set()
                alone = await measuring
            # The first request also starts the process that reads it.
            for process in (first, second):
                over = asyncio.Event()
                measuring = asyncio.ensure_future(latencies(manager.target, over))
                process.stdin.write("\n")
                process.stdin.flush()
                began = time.monotonic()
                status, took = (await asyncio.to_thread(process.stdout.readline)).split()
                await asyncio.sleep(WINDOW_S - (time.monotonic() - began))
                over.set()
                beside = await measuring
                print(
                    f"\n{kind}: status {status} after {float(took):.1f} s; p99 alone {p99(alone) * 1e3:.0f} ms, "
                    f"beside {p99(beside) * 1e3:.0f} ms (max {beside[-1] * 1e3:.0f} of {len(beside)})"
                )
                assert p99(beside) <= 3 * p99(alone)
