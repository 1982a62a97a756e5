"""The caller: a connection, or the tenant of a key. A call without a key is refused at the door of its port.

The door refuses calls before they are read, and also calls beyond a quota. Every method and route needs a key, even if
it does not exist. The exceptions are listed here: health, and with --no-key-for-metrics also metrics and the status.
Without --tenants there is no door.
"""

import binascii
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from aiohttp import web

from tritonembed_manager.router.apis.grpc_arrivals import WrappedServer, refuse
from tritonembed_manager.router.apis.http.errors import Handler, PageNeedsKey, is_for_vectors
from tritonembed_manager.router.apis.http.status import HEALTH
from tritonembed_manager.router.data.quotas import Quotas
from tritonembed_manager.router.data.tenants import ADMITTED, NO_MONITOR, Tenants, current_limits, leave
from tritonembed_manager.router.interfaces import Caller, DispatchError, Metadata

_HEALTH_CALLS = frozenset(
    (
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/inference.GRPCInferenceService/ServerLive",
        "/inference.GRPCInferenceService/ServerReady",
        "/arctic_inference.InferenceService/HealthCheck",
    )
)
VECTOR_CALLS = frozenset(
    (
        "/inference.GRPCInferenceService/ModelInfer",
        "/inference.GRPCInferenceService/ModelStreamInfer",
        "/arctic_inference.InferenceService/Encode",
    )
)
_STREAMS = ("/inference.GRPCInferenceService/ModelStreamInfer",)
"""Quotas count the requests in these streams, not the calls."""
_HEALTH_ROUTES = frozenset(("/health", "/v2/health/live", "/v2/health/ready", *HEALTH))
_BEARER, _BASIC = "bearer", "basic"
_CODE = grpc.StatusCode


@dataclass(frozen=True, slots=True)
class Door:
    """tenants: the known keys. refused: counts a refused request for vectors.

    key_for_health, key_for_metrics: whether health, and metrics and the status, need a key. behind_envoy: whether all
    calls come through Envoy, which names the tenants of the calls that it has admitted.
    """

    tenants: Tenants
    quotas: Quotas
    refused: Callable[[grpc.StatusCode], None]
    key_for_health: bool
    key_for_metrics: bool
    behind_envoy: bool = False

    def over(self, server: Any) -> Any:
        """The gRPC server to which handlers are added, with the door before them."""
        return WrappedServer(server, lambda method, handler: _guard(method, handler, self))

    def enter_call(self, method: str, metadata: Metadata) -> None:
        """Admit a gRPC call. Raises DispatchError."""
        leave()
        if method in _HEALTH_CALLS and not self.key_for_health:
            return
        given = {name: value for name, value in reversed(metadata) if isinstance(value, str)}
        try:
            if self.behind_envoy and method in VECTOR_CALLS and (slot := given.get(ADMITTED)) is not None:
                self.tenants.enter_admitted(slot)
                return
            tenant = self.tenants.enter(key_of(given.get("authorization", ""), given.get("x-api-key", "")))
            if method in VECTOR_CALLS and method not in _STREAMS:
                self.quotas.check(tenant)
        except DispatchError as error:
            if method in VECTOR_CALLS:
                self.refused(error.code)
            raise

    def enter_request(self, request: web.Request, monitor: Collection[str]) -> None:
        """Admit an HTTP request. monitor: the routes of metrics and of the status. Raises DispatchError."""
        leave()
        route = request.match_info.route.resource
        path = "" if route is None else route.canonical.rstrip("/") or "/"
        is_health = path in _HEALTH_ROUTES
        is_monitor = path in monitor and not is_health and request.method != "POST"
        if (is_health and not self.key_for_health) or (is_monitor and not self.key_for_metrics):
            return
        headers = request.headers
        try:
            # Azure's is the last.
            own = headers.get("x-api-key") or headers.get("api-key") or ""
            key = key_of(headers.get("Authorization", ""), own, basic=is_monitor)
            tenant = self.tenants.enter(key)
            if is_for_vectors(request):
                self.quotas.check(tenant)
        except DispatchError as error:
            if is_for_vectors(request):
                self.refused(error.code)
            if is_monitor and error.code is _CODE.UNAUTHENTICATED:
                raise PageNeedsKey(error.code, error.message) from None
            raise
        if is_monitor and not (tenant.monitor or tenant.admin):
            raise DispatchError(_CODE.PERMISSION_DENIED, NO_MONITOR)

    def limits(self) -> list[tuple[str, str]]:
        """The quotas of the current request as headers; no headers without a tenant."""
        try:
            return self.quotas.headers(current_limits())
        except DispatchError:
            return []

    def middleware(self, monitor: Collection[str]) -> Any:
        """The middleware for HTTP, inside `answer_errors`. monitor: the routes of metrics and of the status."""

        @web.middleware
        async def enter(request: web.Request, handler: Handler) -> web.StreamResponse:
            self.enter_request(request, monitor)
            return await handler(request)

        return enter

    async def add_limits(self, _request: web.Request, response: web.StreamResponse) -> None:
        """Write the quotas into an HTTP answer, before it is sent."""
        response.headers.extend(self.limits())


def key_of(authorization: str, api_key: str, *, basic: bool = False) -> str | None:
    """The key in these headers; None if there is none.

    basic: also as the password of Basic, the only scheme that a browser asks its user for.
    """
    scheme, _, value = authorization.strip().partition(" ")
    if scheme.lower() == _BEARER and value.strip():
        return value.strip()
    if scheme.lower() == _BASIC and basic:
        try:
            return b64decode(value.strip(), validate=True).decode().partition(":")[2] or None
        except (binascii.Error, UnicodeDecodeError):
            return None
    return api_key.strip() or None


def _guard(method: str, handler: Any, door: Door) -> Any:
    """handler: of a stream of messages, as in grpc_arrivals.py, so that nothing is read before the key."""
    forms = {"request_deserializer": handler.request_deserializer, "response_serializer": handler.response_serializer}
    if handler.stream_unary is not None:

        async def unary(messages: Any, context: Any) -> Any:
            limited = _Limited(context, door)
            try:
                door.enter_call(method, context.invocation_metadata())
            except DispatchError as error:
                return await refuse(limited, error)
            answer = await handler.stream_unary(messages, limited)
            context.set_trailing_metadata((*context.trailing_metadata(), *door.limits()))
            return answer

        return grpc.stream_unary_rpc_method_handler(unary, **forms)
    assert handler.stream_stream is not None

    async def stream(messages: Any, context: Any) -> AsyncIterator[Any]:
        limited = _Limited(context, door)
        try:
            door.enter_call(method, context.invocation_metadata())
        except DispatchError as error:
            await refuse(limited, error)
        async with aclosing(handler.stream_stream(messages, limited)) as answers:
            async for answer in answers:
                yield answer
        context.set_trailing_metadata((*context.trailing_metadata(), *door.limits()))

    return grpc.stream_stream_rpc_method_handler(stream, **forms)


class _Limited:
    """A call's context that adds the quotas to the trailing metadata of an error."""

    def __init__(self, context: Any, door: Door) -> None:
        self._context = context
        self._door = door

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> None:
        await self._context.abort(code, details, (*trailing_metadata, *self._door.limits()))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


def grpc_caller(context: Any) -> Caller:
    """The caller of a gRPC call, such as `ipv4:10.0.0.7:40312`.

    A port belongs to one connection, so two clients behind one address are two callers.
    """
    return Caller(context.peer())


def http_caller(request: web.Request) -> Caller:
    """The caller of an HTTP request, such as `http:10.0.0.7:40312`; `http:` if its connection is closed already."""
    peer = None if request.transport is None else request.transport.get_extra_info("peername")
    return Caller(f"http:{peer[0]}:{peer[1]}" if peer else "http:")
