"""KServe v2 over gRPC: every method of inference.GRPCInferenceService, as bytes. ModelInfer is never decoded.

ModelStreamInfer has many requests on a stream; each is answered as by ModelInfer, in order.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio

from tritonembed_manager.router.apis.authentication import grpc_caller
from tritonembed_manager.router.apis.grpc_arrivals import refuse
from tritonembed_manager.router.apis.kserve_calls import (
    add_up_statistics,
    answer_as_asked,
    call_all,
    check_admin,
    check_load,
    name_of,
    read_message,
)
from tritonembed_manager.router.data import spaces
from tritonembed_manager.router.data.envelope import NO_SHARED_MEMORY, read_id
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.data.protobuf import field
from tritonembed_manager.router.data.upstream import SERVICE
from tritonembed_manager.router.interfaces import Dispatcher, DispatchError, noting_load

Handler = Callable[[bytes, Any], Awaitable[bytes]]
_ANY = ("ServerMetadata", "ModelMetadata", "ModelConfig", "RepositoryIndex")
"""All servers give the same answer, so the call goes to any server."""
_ALL = ("RepositoryModelLoad", "RepositoryModelUnload")
"""These calls change a server, so they go to every server."""
_SETTINGS = ("TraceSetting", "LogSettings")
"""With settings in the request, these calls change a server; without settings, they read them."""
_SHARED_MEMORY = tuple(
    f"{kind}SharedMemory{what}" for kind in ("System", "Cuda") for what in ("Status", "Register", "Unregister")
)
_TRUE, _FALSE = b"\x08\x01", b""
"""The only field, a bool, of the answers to ServerLive, ServerReady and ModelReady."""
_ERROR, _RESPONSE = 1, 2
"""Fields of ModelStreamInferResponse: an error's message, and a ModelInferResponse."""
_ID = 3
"""The field in ModelInferResponse."""
_AT_ONCE = 256
"""Unanswered requests per stream. At this limit the stream is not read further, and gRPC slows its sender down."""


def add_kserve(
    server: grpc.aio.Server,
    dispatcher: Dispatcher,
    is_serving: Callable[[], bool],
    *,
    admin: bool = False,
    names: ServedNames | None = None,
) -> None:
    """Add inference.GRPCInferenceService to a server.

    is_serving: False from the moment the worker ends. admin: whether requests may change servers. names: of the model.
    """
    service = _Service(dispatcher, is_serving, admin, names or ServedNames())
    unary: dict[str, Handler] = {
        "ModelInfer": service.infer,
        "ServerLive": service.live,
        "ServerReady": service.ready,
        "ModelReady": service.model_ready,
        "ModelStatistics": service.model_statistics,
        **{method: service.ask_any(method) for method in _ANY},
        **{method: service.change(method) for method in _ALL},
        **{method: service.change_or_ask(method) for method in _SETTINGS},
        **dict.fromkeys(_SHARED_MEMORY, service.shared_memory),
    }
    handlers = {method: grpc.unary_unary_rpc_method_handler(handler) for method, handler in unary.items()}
    handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(service.stream)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


class _Service:
    def __init__(self, dispatcher: Dispatcher, is_serving: Callable[[], bool], admin: bool, names: ServedNames) -> None:
        self._dispatcher = dispatcher
        self._is_serving = is_serving
        self._admin = admin
        self._names = names

    async def infer(self, request: bytes, context: Any) -> bytes:
        try:
            with noting_load() as wait:
                answer = await self._infer(request, context, context.invocation_metadata())
            headers = spaces.headers_of([spaces.in_answer(answer)]) | wait.headers
            context.set_trailing_metadata(tuple(headers.items()))
            return answer
        except DispatchError as error:
            return await refuse(context, error)

    async def _infer(self, request: bytes, context: Any, metadata: Any) -> bytes:
        async def infer(request: bytes) -> bytes:
            return await self._dispatcher.infer(
                request, timeout=context.time_remaining(), metadata=metadata, caller=grpc_caller(context)
            )

        return await self._names.infer(request, infer)

    async def stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        metadata = context.invocation_metadata()

        async def infer(request: bytes) -> bytes:
            return await self._infer(request, context, metadata)

        async with aclosing(_answers_in_order(requests, infer)) as answers:
            async for answer in answers:
                yield answer

    async def live(self, _request: bytes, _context: Any) -> bytes:
        return _TRUE

    async def ready(self, _request: bytes, _context: Any) -> bytes:
        return _TRUE if self._is_serving() and self._dispatcher.serving() else _FALSE

    async def model_ready(self, request: bytes, context: Any) -> bytes:
        if not self._is_serving() or not self._dispatcher.serving():
            return _FALSE
        try:
            name = name_of("ModelReady", read_message("ModelReady", request, self._names)[0])
        except DispatchError as error:
            return await refuse(context, error)
        if self._names.more and self._names.of_part(name) and not self._dispatcher.serving(name):
            return _FALSE
        return await self.ask_any("ModelReady")(request, context)

    async def model_statistics(self, request: bytes, context: Any) -> bytes:
        # A server that has just broken is left out.
        answers, alias = await self._all("ModelStatistics", request, context, or_unavailable=True)
        return answer_as_asked("ModelStatistics", add_up_statistics(answers), alias)

    def ask_any(self, method: str) -> Handler:
        async def handler(request: bytes, context: Any) -> bytes:
            try:
                message, alias = read_message(method, request, self._names)
                encoded = message.SerializeToString()
                answer = await self._dispatcher.call(method, encoded, timeout=context.time_remaining())
                return answer_as_asked(method, answer, alias)
            except DispatchError as error:
                return await refuse(context, error)

        return handler

    def change(self, method: str) -> Handler:
        async def handler(request: bytes, context: Any) -> bytes:
            try:
                check_admin(self._admin)
                if method == "RepositoryModelLoad":
                    check_load(read_message(method, request, self._names)[0].parameters)
            except DispatchError as error:
                return await refuse(context, error)
            return (await self._all(method, request, context))[0][0]

        return handler

    def change_or_ask(self, method: str) -> Handler:
        ask, change = self.ask_any(method), self.change(method)

        async def handler(request: bytes, context: Any) -> bytes:
            try:
                settings = read_message(method, request, self._names)[0].settings
            except DispatchError as error:
                return await refuse(context, error)
            return await (change if settings else ask)(request, context)

        return handler

    async def shared_memory(self, _request: bytes, context: Any) -> bytes:
        return await refuse(context, DispatchError(grpc.StatusCode.UNIMPLEMENTED, NO_SHARED_MEMORY))

    async def _all(
        self, method: str, request: bytes, context: Any, *, or_unavailable: bool = False
    ) -> tuple[list[bytes], str]:
        timeout = context.time_remaining()
        try:
            message, alias = read_message(method, request, self._names)
            encoded = message.SerializeToString()
            model = name_of(method, message)
            answers = await call_all(
                self._dispatcher, method, encoded, timeout=timeout, or_unavailable=or_unavailable, model=model
            )
            return answers, alias
        except DispatchError as error:
            await refuse(context, error)
            raise


async def _answers_in_order(
    requests: AsyncIterator[bytes], infer: Callable[[bytes], Awaitable[bytes]]
) -> AsyncGenerator[bytes, None]:
    """Encoded ModelInferRequests to encoded ModelStreamInferResponses. An error answers only its own request."""
    # `places` bounds the requests, not the queue: the end of the stream must fit in at any time.
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
        name = read_id(request)
        # As in Triton, the id in an otherwise empty answer identifies the request.
        return field(_ERROR, error.message.encode()) + (field(_RESPONSE, field(_ID, name)) if name else b"")
