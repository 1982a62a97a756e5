"""A fake Triton in a thread of its own, for managers that are processes."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.fakes.triton import FakeTriton


@contextmanager
def fake_triton(prepare: Callable[[FakeTriton], None] = lambda _: None) -> Iterator[FakeTriton]:
    """One that listens. prepare: sets its switches in time. Its lists can be read at any time."""
    fakes: list[FakeTriton] = []
    listening, over = threading.Event(), threading.Event()

    async def run() -> None:
        async with FakeTriton() as fake:
            prepare(fake)
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
