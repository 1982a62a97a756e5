"""Texts or token ids to vectors, through the dispatcher, in as many requests as it takes."""

import asyncio
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2

from tritonembed import ServerError
from tritonembed._batches import MAX_BATCH_SIZE, batches
from tritonembed._deadline import Deadline
from tritonembed._options import Options
from tritonembed._request import Call, Request
from tritonembed_manager.serve.model import Dispatcher, Ticket

Metadata = Sequence[tuple[str, str | bytes]]
_AT_ONCE = 8
"""Requests at a time that one caller's call becomes. They are admitted as one, and have one deadline."""


async def embed(
    dispatcher: Dispatcher, elements: list[bytes], *, by_ids: bool, options: Options, metadata: Metadata
) -> tuple[list[npt.NDArray[np.float32]], int]:
    """The vectors of texts (UTF-8) or of token ids (little-endian int32), in order, and the number of tokens.

    Vectors: a matrix for each request that was sent. Raises DispatchError and ServerError; if one request fails the
    others are cancelled.
    """
    model, tensor = ("embedder", "token_ids") if by_ids else ("embedding", "text")
    parts = batches(elements, lambda part, _first: part, MAX_BATCH_SIZE)
    call = Call(model, tensor, parts, options, Deadline(None))
    places = asyncio.Semaphore(_AT_ONCE)

    async def send(request: Request, ticket: Ticket) -> tuple[npt.NDArray[np.float32], int]:
        message = request.message
        async with places:
            answer = await dispatcher.infer(message.SerializeToString(), timeout=None, metadata=metadata, ticket=ticket)
        return _read(call, request, answer)

    requests = list(call.requests())
    with dispatcher.admitted(sum(request.message.ByteSize() for request in requests), timeout=None) as ticket:
        if len(requests) == 1:
            answers = [await send(requests[0], ticket)]
        else:
            answers = await _all([asyncio.ensure_future(send(request, ticket)) for request in requests])
    return [vectors for vectors, _ in answers], sum(tokens for _, tokens in answers)


def _read(call: Call, request: Request, answer: bytes) -> tuple[npt.NDArray[np.float32], int]:
    try:
        result = call.read(request, service_pb2.ModelInferResponse.FromString(answer))
    except DecodeError:
        raise ServerError("the answer of the server is no ModelInferResponse") from None
    return result.embeddings, int(result.num_tokens.sum())


async def _all(
    tasks: list["asyncio.Task[tuple[npt.NDArray[np.float32], int]]"],
) -> list[tuple[npt.NDArray[np.float32], int]]:
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        # What they hold is free before the call that was taken in leaves.
        await asyncio.gather(*tasks, return_exceptions=True)
