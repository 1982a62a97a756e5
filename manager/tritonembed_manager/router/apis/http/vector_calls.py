"""Calls for vectors over HTTP, of any API: from a body to vectors, and vectors as pieces of JSON."""

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import numpy as np
import numpy.typing as npt
from aiohttp import web
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2

from tritonembed import EmbeddingResult, InvalidArgumentError, ServerError
from tritonembed.request import Call, Deadline, contents_of
from tritonembed_manager.router.apis.authentication import http_caller
from tritonembed_manager.router.apis.http.bodies import Bodies
from tritonembed_manager.router.apis.http.converter import Converter
from tritonembed_manager.router.apis.http.foreign_ids import ForeignIds
from tritonembed_manager.router.apis.http.tensor_json import json_rows
from tritonembed_manager.router.apis.http.vector_requests import PreparedMessage, of_path
from tritonembed_manager.router.data.envelope import work_of
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.data.spaces import headers_of
from tritonembed_manager.router.data.tracing import metadata_of
from tritonembed_manager.router.interfaces import Admission, Caller, Dispatcher, DispatchError, Metadata
from tritonembed_protocol.framing import FramingError, unframe
from tritonembed_protocol.served import ServedModel

AnyResult = TypeVar("AnyResult")
_REQUESTS_AT_ONCE = 8
"""Concurrent requests of a caller's call. They are admitted as one, and have one deadline."""
_ROWS_AT_ONCE = 64
"""Vectors that are written before other requests have their turn."""
_FEW_REQUESTS = 2
_LARGE_AT_ONCE = 2
"""Concurrent calls of more than _FEW_REQUESTS requests, whose vectors take up to 128 MiB. Further calls wait."""


@dataclass(frozen=True)
class Vectors:
    """The answers to one call, in order.

    info: of the conversion of its body. messages: the encoded ModelInferRequests that were answered. is_large: whether
    the answer is to be sent in pieces.
    """

    results: Sequence[EmbeddingResult]
    info: dict[str, Any]
    messages: Sequence[bytes]
    is_large: bool
    model: str
    """The name of the model in the answer."""

    @property
    def tokens(self) -> int:
        """Tokens of all texts."""
        return sum(int(result.num_tokens.sum()) for result in self.results)

    @property
    def headers(self) -> dict[str, str]:
        """The embedding space, as a header."""
        return headers_of(result.embedding_space for result in self.results)

    async def parts(self) -> AsyncIterator[npt.NDArray[Any]]:
        """A few rows at a time. Other requests have their turn in between."""
        is_first = True
        for result in self.results:
            for at in range(0, len(result.embeddings), _ROWS_AT_ONCE):
                if not is_first:
                    await asyncio.sleep(0)
                is_first = False
                yield result.embeddings[at : at + _ROWS_AT_ONCE]

    async def texts(self) -> AsyncIterator[list[bytes]]:
        """The texts of the call as JSON, request by request."""
        for message in self.messages:
            [content] = service_pb2.ModelInferRequest.FromString(message).raw_input_contents
            yield [json.dumps(text.decode()).encode() for text in unframe(content)]
            await asyncio.sleep(0)

    def check_finite(self, instead: str) -> None:
        """Raises ServerError for a number that JSON lacks. instead: another form to ask for, for the error."""
        for result in self.results:
            weights = (vector.weights for vector in result.sparse or ())
            arrays = (result.embeddings, *(result.multi_vector or ()), *weights)
            if not all(array.dtype.kind != "f" or np.isfinite(array).all() for array in arrays):
                raise ServerError(
                    f"output embedding: a number that is not finite cannot be written as JSON; ask for {instead}"
                )

    async def answer(self, request: web.Request, pieces: AsyncIterator[bytes]) -> web.StreamResponse:
        """pieces: the JSON of the answer. Errors show with the first piece, before the answer begins."""
        if self.is_large:
            return await _stream(request, pieces, self.headers)
        body = b"".join([piece async for piece in pieces])
        return web.Response(body=body, content_type="application/json", headers=self.headers)


class VectorCalls:
    """Sends the texts of HTTP requests to the servers. names: of the models. accept_ids: see ForeignIds."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        names: ServedNames,
        bodies: Bodies,
        converter: Converter,
        *,
        accept_ids: bool = False,
    ) -> None:
        self._dispatcher = dispatcher
        self._names = names
        self._bodies = bodies
        self._converter = converter
        self._accept_ids = accept_ids
        self._foreign: dict[ServedModel, ForeignIds] = {}
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)

    @asynccontextmanager
    async def embed(self, request: web.Request, kind: str, field: str, **arguments: Any) -> AsyncIterator[Vectors]:
        """The vectors of a request's body; they are in memory until the block is left.

        kind, arguments: of the conversion (see conversions.py), whose info has `counts` and `by_ids`. field: of the
        texts, for errors. Raises BadRequest, DispatchError, ServerError.
        """
        names: dict[str, Any] = {"names": of_path(request, self._names).json}
        async with self._bodies.read_chunks(request) as chunks, AsyncExitStack() as stack:
            asked = await self._converter.convert(kind, chunks, **names, **arguments)
            model = self._names.of_part(asked.info["model"]) or self._names
            if asked.info["by_ids"]:
                await self._foreign_ids(model.served).check(asked.messages, field)
            requests = list(map(PreparedMessage, asked.messages, asked.info["counts"]))
            is_large = len(requests) > _FEW_REQUESTS
            if is_large:
                await stack.enter_async_context(self._large)
            call = Call("", "", iter(()), asked.info.get("options", {}), Deadline(None))
            read = functools.partial(_read_answer, call)
            results = await self._send(request, requests, read, asked.info["model"])
            yield Vectors(results, asked.info, asked.messages, is_large, model.model)

    async def inspect(self, request: web.Request, kind: str) -> list[bytes]:
        """The elements of the one output that a request asks of a tokenizer. kind: as for `embed`.

        Raises BadRequest, DispatchError, ServerError.
        """
        async with self._bodies.read_chunks(request) as chunks:
            asked = await self._converter.convert(kind, chunks, names=of_path(request, self._names).json)
            requests = list(map(PreparedMessage, asked.messages, asked.info["counts"]))
            read = functools.partial(_read_elements, asked.info["output"])
            found = await self._send(request, requests, read)
        return [element for elements in found for element in elements]

    def _foreign_ids(self, model: ServedModel) -> ForeignIds:
        if model not in self._foreign:
            self._foreign[model] = ForeignIds(self._dispatcher, model, accept=self._accept_ids)
        return self._foreign[model]

    async def _send(
        self,
        request: web.Request,
        requests: Sequence[PreparedMessage],
        read: Callable[[PreparedMessage, bytes], AnyResult],
        model: str = "",
    ) -> list[AnyResult]:
        metadata, caller = metadata_of(request.headers), http_caller(request)
        return await send_all(self._dispatcher, requests, read, metadata, caller, model)


def as_json(rows: npt.NDArray[Any]) -> list[bytes]:
    """Each row as the text of a JSON list."""
    if rows.dtype.kind == "f":
        return json_rows(rows.astype(np.float32, copy=False))
    return [json.dumps(row, separators=(",", ":")).encode() for row in rows.tolist()]


async def _stream(request: web.Request, pieces: AsyncIterator[bytes], headers: dict[str, str]) -> web.StreamResponse:
    """Send an answer in pieces, so that it is never in memory as a whole."""
    first = await anext(pieces)
    answer = web.StreamResponse(headers={"Content-Type": "application/json; charset=utf-8", **headers})
    await answer.prepare(request)
    await answer.write(first)
    async for piece in pieces:
        await answer.write(piece)
    await answer.write_eof()
    return answer


async def send_all(
    dispatcher: Dispatcher,
    requests: Sequence[PreparedMessage],
    read: Callable[[PreparedMessage, bytes], AnyResult],
    metadata: Metadata,
    caller: Caller,
    model: str,
) -> list[AnyResult]:
    """The answers to the requests, in order, as `read` reads them.

    Raises DispatchError and ServerError. If one request fails, the others are cancelled.
    """
    places = asyncio.Semaphore(_REQUESTS_AT_ONCE)

    async def send(request: PreparedMessage, admitted: Admission) -> AnyResult:
        async with places:
            answer = await dispatcher.infer(
                request.message, timeout=None, metadata=metadata, caller=caller, admitted=admitted
            )
        return read(request, answer)

    size = sum(len(request.message) for request in requests)
    work = sum(work_of(request.message) for request in requests)
    with dispatcher.admitted(size, timeout=None, caller=caller, work=work, model=model) as admitted:
        if len(requests) == 1:
            return [await send(requests[0], admitted)]
        return await _all_of([asyncio.ensure_future(send(request, admitted)) for request in requests])


def _read_answer(call: Call, request: PreparedMessage, answer: bytes) -> EmbeddingResult:
    try:
        return call.read(request.count, service_pb2.ModelInferResponse.FromString(answer))
    except DecodeError:
        raise ServerError("the server's answer is not a ModelInferResponse") from None
    except InvalidArgumentError as error:
        # The model lacks the outputs of the API that was called.
        raise DispatchError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None


def _read_elements(output: str, request: PreparedMessage, answer: bytes) -> list[bytes]:
    try:
        elements = unframe(contents_of(service_pb2.ModelInferResponse.FromString(answer), [output])[output])
    except (DecodeError, FramingError):
        raise ServerError(f"output {output}: the answer can't be read") from None
    if len(elements) != request.count:
        raise ServerError(f"output {output}: {len(elements)} elements for {request.count} inputs")
    return elements


async def _all_of(tasks: list["asyncio.Task[AnyResult]"]) -> list[AnyResult]:
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        # The requests' slots must be free before the admitted call leaves.
        await asyncio.gather(*tasks, return_exceptions=True)
