"""KServe v2 over gRPC, every method of inference.GRPCInferenceService, as bytes: ModelInfer is never decoded."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2

from tritonembed_manager.serve import statistics
from tritonembed_manager.serve.every_server import call_all
from tritonembed_manager.serve.forward import SERVICE
from tritonembed_manager.serve.kserve_stream import answers_in_order
from tritonembed_manager.serve.model import Dispatcher, DispatchError

Handler = Callable[[bytes, Any], Awaitable[bytes]]
_ANY = ("ServerMetadata", "ModelMetadata", "ModelConfig", "RepositoryIndex")
"""Every server has the same answer."""
_ALL = ("RepositoryModelLoad", "RepositoryModelUnload")
"""They change a server: each one is told."""
_SETTINGS = {"TraceSetting": service_pb2.TraceSettingRequest, "LogSettings": service_pb2.LogSettingsRequest}
"""They change it if the request has settings, and tell what is set if not."""
_SHARED_MEMORY = tuple(
    f"{kind}SharedMemory{what}" for kind in ("System", "Cuda") for what in ("Status", "Register", "Unregister")
)
_TRUE, _FALSE = b"\x08\x01", b""
"""The one field, a bool, of the answers to ServerLive, ServerReady and ModelReady."""


def add_kserve(server: grpc.aio.Server, dispatcher: Dispatcher, is_serving: Callable[[], bool]) -> None:
    """Let a server answer for inference.GRPCInferenceService. is_serving: False from the moment it drains."""
    service = _Service(dispatcher, is_serving)
    unary: dict[str, Handler] = {
        "ModelInfer": service.infer,
        "ServerLive": service.live,
        "ServerReady": service.ready,
        "ModelReady": service.model_ready,
        "ModelStatistics": service.model_statistics,
        **{method: service.ask_any(method) for method in _ANY},
        **{method: service.tell_all(method) for method in _ALL},
        **{method: service.change_or_ask(method, message) for method, message in _SETTINGS.items()},
        **dict.fromkeys(_SHARED_MEMORY, service.shared_memory),
    }
    handlers = {method: grpc.unary_unary_rpc_method_handler(handler) for method, handler in unary.items()}
    handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(service.stream)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


class _Service:
    def __init__(self, dispatcher: Dispatcher, is_serving: Callable[[], bool]) -> None:
        self._dispatcher = dispatcher
        self._is_serving = is_serving

    async def infer(self, request: bytes, context: Any) -> bytes:
        try:
            return await self._dispatcher.infer(
                request, timeout=context.time_remaining(), metadata=context.invocation_metadata()
            )
        except DispatchError as error:
            return await refuse(context, error)

    async def stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        metadata = context.invocation_metadata()

        async def infer(request: bytes) -> bytes:
            return await self._dispatcher.infer(request, timeout=context.time_remaining(), metadata=metadata)

        async with aclosing(answers_in_order(requests, infer)) as answers:
            async for answer in answers:
                yield answer

    async def live(self, _request: bytes, _context: Any) -> bytes:
        return _TRUE

    async def ready(self, _request: bytes, _context: Any) -> bytes:
        return _TRUE if self._is_serving() and self._dispatcher.serving() else _FALSE

    async def model_ready(self, request: bytes, context: Any) -> bytes:
        if not self._is_serving() or not self._dispatcher.serving():
            return _FALSE
        return await self.ask_any("ModelReady")(request, context)

    async def model_statistics(self, request: bytes, context: Any) -> bytes:
        # One that has just broken does not count.
        return statistics.add_up(await self._all("ModelStatistics", request, context, or_unavailable=True))

    def ask_any(self, method: str) -> Handler:
        async def handler(request: bytes, context: Any) -> bytes:
            try:
                return await self._dispatcher.call(method, request, timeout=context.time_remaining())
            except DispatchError as error:
                return await refuse(context, error)

        return handler

    def tell_all(self, method: str) -> Handler:
        async def handler(request: bytes, context: Any) -> bytes:
            return (await self._all(method, request, context))[0]

        return handler

    def change_or_ask(self, method: str, message: Any) -> Handler:
        ask, tell = self.ask_any(method), self.tell_all(method)

        async def handler(request: bytes, context: Any) -> bytes:
            try:
                changes = message.FromString(request).settings
            except DecodeError:
                # The server has words for it.
                changes = ()
            return await (tell if changes else ask)(request, context)

        return handler

    async def shared_memory(self, _request: bytes, context: Any) -> bytes:
        reason = (
            "shared memory belongs to one server, and this endpoint stands before many: send the tensors in the "
            "request, or connect to a Triton server itself"
        )
        return await refuse(context, DispatchError(grpc.StatusCode.UNIMPLEMENTED, reason))

    async def _all(self, method: str, request: bytes, context: Any, *, or_unavailable: bool = False) -> list[bytes]:
        timeout = context.time_remaining()
        try:
            return await call_all(self._dispatcher, method, request, timeout=timeout, or_unavailable=or_unavailable)
        except DispatchError as error:
            await refuse(context, error)
            raise


async def refuse(context: Any, error: DispatchError) -> bytes:
    """End the call with an error (it raises). gRPC's clients know when to come again by grpc-retry-pushback-ms."""
    pushback = () if error.retry_after is None else (("grpc-retry-pushback-ms", str(round(error.retry_after * 1000))),)
    await context.abort(error.code, error.message, pushback)
    raise AssertionError("abort raises")
