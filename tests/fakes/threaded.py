"""Fakes in threads of their own: a Triton, for tests whose manager is a process, and HTTP servers."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import HTTPServer

import grpc
from tests.fakes.triton import FakeTriton

_LOOPS: dict[FakeTriton, asyncio.AbstractEventLoop] = {}


@contextmanager
def fake_triton(
    prepare: Callable[[FakeTriton], None] = lambda _: None, credentials: grpc.ServerCredentials | None = None
) -> Iterator[FakeTriton]:
    """A fake that listens. prepare: sets its switches before the test begins. Its lists can be read at any time."""
    fakes: list[FakeTriton] = []
    listening, over = threading.Event(), threading.Event()

    async def run() -> None:
        async with FakeTriton(credentials) as fake:
            prepare(fake)
            _LOOPS[fake] = asyncio.get_running_loop()
            fakes.append(fake)
            listening.set()
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    listening.wait()
    try:
        yield fakes[0]
    finally:
        over.set()
        thread.join()
        del _LOOPS[fakes[0]]


def start_anew(fake: FakeTriton, down_s: float) -> None:
    """Crash the fake, and let it listen again after `down_s` seconds."""

    async def run() -> None:
        await fake.crash()
        await asyncio.sleep(down_s)
        await fake.come_back()

    asyncio.run_coroutine_threadsafe(run(), _LOOPS[fake]).result(down_s + 10)


@contextmanager
def held(fake: FakeTriton) -> Iterator[None]:
    """The fake answers nothing until the end of the block."""
    _LOOPS[fake].call_soon_threadsafe(fake.hang)
    try:
        yield
    finally:
        _LOOPS[fake].call_soon_threadsafe(fake.release)


@contextmanager
def http_server(server: HTTPServer) -> Iterator[str]:
    """Serve until the end of the block. Yields host:port."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
