"""Calls for vectors on the gRPC port: each has an id, which its answer repeats, and a span if tracing is on."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio

from tritonembed_manager.router.apis.authentication import VECTOR_CALLS
from tritonembed_manager.router.apis.grpc_arrivals import WrappedServer
from tritonembed_manager.router.data.access_log import HEADER, enter
from tritonembed_manager.router.data.tracing import Tracing
from tritonembed_manager.router.interfaces import Metadata


class GrpcRequests:
    """Wraps the handlers of a gRPC server. is_logged: whether there is an access log."""

    def __init__(self, tracing: Tracing, *, is_logged: bool) -> None:
        self._tracing = tracing
        self._is_logged = is_logged

    def over(self, server: Any) -> Any:
        """The server to which handlers of streams (grpc_arrivals.py) are added, wrapped."""
        return WrappedServer(server, self._wrap)

    def _wrap(self, method: str, handler: Any) -> Any:
        if method not in VECTOR_CALLS:
            return handler
        forms = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.stream_unary is not None:

            async def unary(messages: Any, context: Any) -> Any:
                call = self._enter(method, context)
                if call is None:
                    return await handler.stream_unary(messages, context)
                try:
                    answer = await handler.stream_unary(messages, call)
                    call.add_id()
                    return answer
                finally:
                    call.end()

            return grpc.stream_unary_rpc_method_handler(unary, **forms)

        async def stream(messages: Any, context: Any) -> AsyncIterator[Any]:
            call = self._enter(method, context)
            try:
                async with aclosing(handler.stream_stream(messages, call or context)) as answers:
                    async for answer in answers:
                        yield answer
                if call is not None:
                    call.add_id()
            finally:
                if call is not None:
                    call.end()

        return grpc.stream_stream_rpc_method_handler(stream, **forms)

    def _enter(self, method: str, context: Any) -> "_Call | None":
        """The context of a call that has an id or a span; None for all others."""
        metadata = context.invocation_metadata()
        given = next((value for name, value in metadata if name == HEADER), None)
        via = {"rpc.system": "grpc", "rpc.method": method.lstrip("/")}
        request_id = enter(given if isinstance(given, str) else None, via, is_logged=self._is_logged)
        span = self._tracing.enter(method.lstrip("/"), metadata)
        return None if span is None and not request_id else _Call(context, request_id, span, self._tracing)


class _Call:
    """A call's context that adds the id to the trailing metadata, and whose span ends with the call's status."""

    def __init__(self, context: Any, request_id: str, span: Any, tracing: Tracing) -> None:
        self._context = context
        self._trailing = ((HEADER, request_id),) if request_id else ()
        self._span = span
        self._tracing = tracing
        self._code = grpc.StatusCode.CANCELLED

    def add_id(self) -> None:
        """The call is answered."""
        self._code = grpc.StatusCode.OK
        if self._trailing:
            self._context.set_trailing_metadata((*self._context.trailing_metadata(), *self._trailing))

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> None:
        self._code = code
        await self._context.abort(code, details, (*trailing_metadata, *self._trailing))

    def end(self) -> None:
        """The call has ended."""
        if self._span is not None:
            self._tracing.end(self._span, self._code)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)
