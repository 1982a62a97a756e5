"""grpc.health.v1, for load balancers and grpc_health_probe. Each answer is the current state."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2

from tritonembed_manager.router.interfaces import Dispatcher

HEALTH = "grpc.health.v1.Health"
SERVICES = ("", "inference.GRPCInferenceService", "arctic_inference.InferenceService")
"""The services have the same state, because they use the same servers."""
_Response = health_pb2.HealthCheckResponse


def outage(dispatcher: Dispatcher, is_serving: Callable[[], bool]) -> str:
    """The reason why requests can't be served now; empty if they can."""
    if not is_serving():
        return "draining: the manager is shutting down"
    if not dispatcher.serving():
        return "no server is ready"
    return ""


class Health:
    """SERVING while a server can receive requests and the manager does not end.

    Call `refresh` when either changes.
    """

    def __init__(self, dispatcher: Dispatcher, is_serving: Callable[[], bool]) -> None:
        self._dispatcher = dispatcher
        self._is_serving = is_serving
        self._changed = asyncio.Event()

    def refresh(self) -> None:
        """Send a change to clients that watch. During a drain their streams end, so that nothing waits for them."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def check(self, request: Any, context: Any) -> Any:
        """The current status; NOT_FOUND for an unknown service."""
        if request.service not in SERVICES:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
        return _Response(status=self._status(request.service))

    async def watch(self, request: Any, _context: Any) -> AsyncIterator[Any]:
        """The current status, then every change."""
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
        return int(_Response.NOT_SERVING if outage(self._dispatcher, self._is_serving) else _Response.SERVING)


def add_health(server: grpc.aio.Server, dispatcher: Dispatcher, is_serving: Callable[[], bool]) -> Health:
    """Add grpc.health.v1 to a server. is_serving: False from the moment the worker drains."""
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
