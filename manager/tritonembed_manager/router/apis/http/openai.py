"""OpenAI's API: /v1/embeddings and /v1/models."""

import asyncio
import json
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from aiohttp import web
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2

from tritonembed import EmbeddingResult, ServerError
from tritonembed.request import Call, Deadline, Options
from tritonembed_manager.router.apis.callers import http_caller
from tritonembed_manager.router.apis.http.bodies import Bodies
from tritonembed_manager.router.apis.http.converter import Converter
from tritonembed_manager.router.apis.http.errors import BadRequest
from tritonembed_manager.router.apis.http.openai_request import Prepared, field_at_fault
from tritonembed_manager.router.apis.http.tensor_json import json_rows
from tritonembed_manager.router.data.model_names import ENSEMBLE, ServedNames
from tritonembed_manager.router.data.spaces import headers_of
from tritonembed_manager.router.data.tenants import current_tenant
from tritonembed_manager.router.data.tracing import metadata_of
from tritonembed_manager.router.interfaces import Admission, Caller, Dispatcher, DispatchError, Metadata

_REQUESTS_AT_ONCE = 8
"""Concurrent requests of one caller's call. They are admitted as one, and have one deadline."""
_ROWS_AT_ONCE = 64
"""Vectors that are written before other requests have their turn."""
_FEW_REQUESTS = 2
_LARGE_AT_ONCE = 2
"""Concurrent calls of more than _FEW_REQUESTS requests: their vectors take up to 128 MiB. Others wait."""


class OpenAI:
    """The routes of OpenAI's API. names: of the model."""

    def __init__(
        self, dispatcher: Dispatcher, names: ServedNames, bodies: Bodies, converter: Converter | None = None
    ) -> None:
        self._dispatcher = dispatcher
        self._names = names
        self._bodies = bodies
        self._converter = converter or Converter()
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)
        self._created = int(time.time())

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/embeddings", self.embeddings),
            web.get("/v1/models", self.models),
            web.get("/v1/models/{model:.+}", self.one_model),
        ]

    async def embeddings(self, request: web.Request) -> web.StreamResponse:
        """The vectors of `input`, as lists of numbers or as base64 of little-endian float32."""
        async with self._bodies.read_chunks(request) as chunks, AsyncExitStack() as stack:
            asked = await self._converter.convert("openai", chunks, ids=self._names.ids, others=self._names.others)
            requests = list(map(Prepared, asked.messages, asked.info["counts"]))
            if len(requests) > _FEW_REQUESTS:
                await stack.enter_async_context(self._large)
            try:
                results = await _embed(self._dispatcher, requests, metadata_of(request.headers), http_caller(request))
            except DispatchError as error:
                if error.code is grpc.StatusCode.INVALID_ARGUMENT:
                    bad = BadRequest(error.message, field_at_fault(error.message))
                    bad.is_counted = True
                    raise bad from None
                raise
            headers = headers_of(result.embedding_space for result in results)
            pieces = self._write(results, as_base64=asked.info["as_base64"])
            if len(requests) > _FEW_REQUESTS:
                return await _stream(request, pieces, headers)
        body = b"".join([piece async for piece in pieces])
        return web.Response(body=body, content_type="application/json", headers=headers)

    async def models(self, _request: web.Request) -> web.Response:
        """The one model, under each of its ids."""
        ids = self._names.ids if _may_use_it() else ()
        return web.json_response({"object": "list", "data": [self._describe(id) for id in ids]})

    async def one_model(self, request: web.Request) -> web.Response:
        """The model, by one of its names."""
        # A name may contain slashes; a trailing slash is not part of it.
        name = request.match_info["model"].rstrip("/")
        if name not in self._names or not _may_use_it():
            raise BadRequest("this server has no such model; GET /v1/models names it", "model", 404, "model_not_found")
        return web.json_response(self._describe(name if name in self._names.ids else self._names.model))

    def _describe(self, id: str) -> dict[str, Any]:
        return {"id": id, "object": "model", "created": self._created, "owned_by": "tritonembed"}

    async def _write(self, results: Sequence[EmbeddingResult], *, as_base64: bool) -> AsyncIterator[bytes]:
        parts = [result.embeddings for result in results]
        tokens = sum(int(result.num_tokens.sum()) for result in results)
        if not as_base64 and not all(np.isfinite(vectors).all() for vectors in parts):
            raise ServerError("output embedding: a number that is not finite cannot be written as JSON; ask for base64")
        index = 0
        yield b'{"object":"list","data":['
        for vectors in parts:
            for at in range(0, len(vectors), _ROWS_AT_ONCE):
                if index:
                    await asyncio.sleep(0)
                    yield b","
                rows = vectors[at : at + _ROWS_AT_ONCE]
                numbers = range(index, index + len(rows))
                yield b",".join(map(_item, numbers, _texts(rows, as_base64=as_base64)))
                index += len(rows)
        end = {"model": self._names.model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
        yield b"]," + json.dumps(end).encode()[1:]


async def _stream(request: web.Request, pieces: AsyncIterator[bytes], headers: dict[str, str]) -> web.StreamResponse:
    """Send an answer in pieces, so that it is never in memory as a whole."""
    # Errors show with the first piece, before the answer begins.
    first = await anext(pieces)
    answer = web.StreamResponse(headers={"Content-Type": "application/json; charset=utf-8", **headers})
    await answer.prepare(request)
    await answer.write(first)
    async for piece in pieces:
        await answer.write(piece)
    await answer.write_eof()
    return answer


def _item(index: int, vector: bytes) -> bytes:
    return b'{"object":"embedding","index":%d,"embedding":%b}' % (index, vector)


def _may_use_it() -> bool:
    """Whether the current tenant, if there is one, may use the served model."""
    tenant = current_tenant()
    return tenant is None or tenant.may_use(ENSEMBLE)


def _texts(rows: npt.NDArray[np.float32], *, as_base64: bool) -> list[bytes]:
    if as_base64:
        return [b'"' + b64encode(row.tobytes()) + b'"' for row in rows]
    return json_rows(rows)


async def _embed(
    dispatcher: Dispatcher, requests: Sequence[Prepared], metadata: Metadata, caller: Caller
) -> list[EmbeddingResult]:
    """The float32 vectors of the requests, in order.

    Raises DispatchError and ServerError. If one request fails, the others are cancelled.
    """
    call = Call("", "", iter(()), Options(), Deadline(None))
    places = asyncio.Semaphore(_REQUESTS_AT_ONCE)

    async def send(request: Prepared, admitted: Admission) -> EmbeddingResult:
        async with places:
            answer = await dispatcher.infer(
                request.message, timeout=None, metadata=metadata, caller=caller, admitted=admitted
            )
        return _read_answer(call, request, answer)

    size = sum(len(request.message) for request in requests)
    with dispatcher.admitted(size, timeout=None, caller=caller) as admitted:
        if len(requests) == 1:
            return [await send(requests[0], admitted)]
        return await _all([asyncio.ensure_future(send(request, admitted)) for request in requests])


def _read_answer(call: Call, request: Prepared, answer: bytes) -> EmbeddingResult:
    try:
        return call.read(request.count, service_pb2.ModelInferResponse.FromString(answer))
    except DecodeError:
        raise ServerError("the server's answer is not a ModelInferResponse") from None


async def _all(tasks: list["asyncio.Task[EmbeddingResult]"]) -> list[EmbeddingResult]:
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        # Their slots must be free before the admitted call leaves.
        await asyncio.gather(*tasks, return_exceptions=True)
