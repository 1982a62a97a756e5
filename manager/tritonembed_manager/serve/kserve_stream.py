"""ModelStreamInfer: many requests on one stream, each answered as ModelInfer would, in their order."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

from tritonembed_manager.serve.infer_message import WrongMessage, field, read_id
from tritonembed_manager.serve.model import DispatchError

_ERROR, _RESPONSE = 1, 2
"""Fields of ModelStreamInferResponse: the message of an error, and a ModelInferResponse."""
_ID = 3
"""Field of ModelInferResponse."""
_AT_ONCE = 256
"""Requests of one stream that are not answered yet; then it is not read on, and gRPC slows its sender down."""


async def answers_in_order(
    requests: AsyncIterator[bytes], infer: Callable[[bytes], Awaitable[bytes]]
) -> AsyncGenerator[bytes, None]:
    """Encoded ModelInferRequests to encoded ModelStreamInferResponses; an error is the answer to its request alone."""
    # Bounded by the places, not by the queue: the end of the stream must get in at any time.
    pending: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue()
    places = asyncio.Semaphore(_AT_ONCE)
    tasks: set[asyncio.Task[bytes]] = set()

    async def read() -> None:
        async for request in requests:
            await places.acquire()
            task = asyncio.ensure_future(_answer(request, infer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            pending.put_nowait(task)

    async def read_all() -> None:
        try:
            await read()
        finally:
            pending.put_nowait(None)

    reader = asyncio.ensure_future(read_all())
    try:
        while (task := await pending.get()) is not None:
            yield await task
            places.release()
    finally:
        reader.cancel()
        for task in tasks:
            task.cancel()


async def _answer(request: bytes, infer: Callable[[bytes], Awaitable[bytes]]) -> bytes:
    try:
        return field(_RESPONSE, await infer(request))
    except DispatchError as error:
        try:
            name = read_id(request)
        except WrongMessage:
            name = b""
        # Triton says which request it was by the id of an otherwise empty answer.
        return field(_ERROR, error.message.encode()) + (field(_RESPONSE, field(_ID, name)) if name else b"")
