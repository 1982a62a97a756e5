"""grpc.health.v1: what load balancers and grpc_health_probe ask. An answer is always that of this moment."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2

from tritonembed_manager.serve.model import Dispatcher

HEALTH = "grpc.health.v1.Health"
SERVICES = ("", "inference.GRPCInferenceService", "arctic_inference.InferenceService")
"""All of them serve, or none does: they go to the same servers."""
_Response = health_pb2.HealthCheckResponse


def why_not(dispatcher: Dispatcher, is_serving: Callable[[], bool]) -> str:
    """Why nothing is served at this moment; empty when it is."""
    if not is_serving():
        return "draining: no new requests are taken"
    if not dispatcher.serving():
        return "no server is ready"
    return ""


class Health:
    """SERVING while requests have a server to go to and nothing drains. Tell it with `refresh` when either changed."""

    def __init__(self, dispatcher: Dispatcher, is_serving: Callable[[], bool]) -> None:
        self._dispatcher = dispatcher
        self._is_serving = is_serving
        self._changed = asyncio.Event()

    def refresh(self) -> None:
        """Those that watch are to hear of a change. When it drains their streams end: nothing is to wait for them."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def check(self, request: Any, context: Any) -> Any:
        """One answer; NOT_FOUND for another service."""
        if request.service not in SERVICES:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service here")
        return _Response(status=self._status(request.service))

    async def watch(self, request: Any, _context: Any) -> AsyncIterator[Any]:
        """The status now, and whenever it is another one."""
        last = None
        while True:
            changed, is_serving = self._changed, self._is_serving()
            status = self._status(request.service)
            if status != last:
                last = status
                yield _Response(status=status)
            if not is_serving:
                return
            await changed.wait()

    def _status(self, service: str) -> int:
        if service not in SERVICES:
            return int(_Response.SERVICE_UNKNOWN)
        return int(_Response.NOT_SERVING if why_not(self._dispatcher, self._is_serving) else _Response.SERVING)


def add_health(server: grpc.aio.Server, dispatcher: Dispatcher, is_serving: Callable[[], bool]) -> Health:
    """Let a server answer for grpc.health.v1. is_serving: False from the moment it drains."""
    health = Health(dispatcher, is_serving)
    messages = {
        "request_deserializer": health_pb2.HealthCheckRequest.FromString,
        "response_serializer": _Response.SerializeToString,
    }
    handlers = {
        "Check": grpc.unary_unary_rpc_method_handler(health.check, **messages),
        "Watch": grpc.unary_stream_rpc_method_handler(health.watch, **messages),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(HEALTH, handlers),))
    return health
