"""The manager's HTTP side as one aiohttp application."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from typing import Any, Protocol

import aiohttp
from aiohttp import web

from tritonembed_manager.serve.grpc_health import why_not
from tritonembed_manager.serve.http.bodies import MAX_BODY, Bodies
from tritonembed_manager.serve.http.errors import Handler, answer_errors
from tritonembed_manager.serve.http.half_close import HalfClosingRunner, note_request
from tritonembed_manager.serve.http.history import History
from tritonembed_manager.serve.http.kserve import KServe
from tritonembed_manager.serve.http.kserve_admin import KServeAdmin
from tritonembed_manager.serve.http.metrics import Metrics
from tritonembed_manager.serve.http.openai import OpenAI
from tritonembed_manager.serve.http.status import StatusPage
from tritonembed_manager.serve.model import Dispatcher
from tritonembed_manager.serve.tracing import Tracing, from_environment


class Settings(Protocol):
    """What of a WorkerConfig matters here."""

    @property
    def model(self) -> str:
        """The name that OpenAI's clients use."""


def make_app(
    dispatcher: Dispatcher,
    settings: Settings,
    status: Callable[[], dict[str, Any]],
    is_serving: Callable[[], bool] = lambda: True,
    tracing: Tracing | None = None,
    history: History | None = None,
) -> web.Application:
    """To be run by `make_runner`.

    status: the parent's last snapshot, {} before the first. is_serving: False from the moment this worker drains.
    tracing: as the environment says, by default.
    """
    tracing = from_environment() if tracing is None else tracing
    sessions: list[aiohttp.ClientSession] = []
    history = history or History(status)
    bodies = Bodies()

    def reason() -> str:
        return why_not(dispatcher, lambda: is_serving() and not status().get("draining"))

    async def around(_app: web.Application) -> AsyncIterator[None]:
        # Nothing on the way to a server is a proxy, whatever the environment says of HTTP.
        async with aiohttp.ClientSession(trust_env=False) as session:
            sessions.append(session)
            keeping = asyncio.ensure_future(history.keep())
            yield
            keeping.cancel()
            with suppress(asyncio.CancelledError):
                await keeping
        await asyncio.to_thread(tracing.close)

    middlewares = [note_request, _traced(tracing), answer_errors]
    app = web.Application(middlewares=middlewares, client_max_size=MAX_BODY)
    traced = tracing.over(dispatcher)
    for part in (
        OpenAI(traced, settings.model, bodies),
        KServe(traced, reason, bodies),
        KServeAdmin(dispatcher, bodies),
        Metrics(dispatcher.servers, lambda: sessions[0]),
        StatusPage(reason, status, history),
    ):
        app.add_routes(with_trailing_slashes(part.routes()))
    app.cleanup_ctx.append(around)
    return app


def make_runner(app: web.Application, shutdown_timeout: float) -> web.AppRunner:
    """Runs the application. shutdown_timeout: seconds for the answers that are being written at the end."""
    return HalfClosingRunner(
        app,
        access_log=None,
        # A client that goes away frees its place.
        handler_cancellation=True,
        handle_signals=False,
        shutdown_timeout=shutdown_timeout,
        # `Bodies` does it.
        auto_decompress=False,
    )


def with_trailing_slashes(routes: Iterable[web.RouteDef]) -> list[web.RouteDef]:
    """The routes, and each also with a slash behind it, as some clients join addresses; not for files."""
    both = []
    for route in routes:
        both.append(route)
        last = route.path.rpartition("/")[2]
        if last and "." not in last:
            both.append(web.route(route.method, f"{route.path}/", route.handler))
    return both


def _traced(tracing: Tracing) -> Any:
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        route = request.match_info.route.resource
        path = "" if route is None else route.canonical
        # Probes and pages would drown what is to be seen.
        if tracing.provider is None or request.method != "POST":
            return await handler(request)
        with tracing.serving(f"{request.method} {path}", request.headers) as span:
            answer = await handler(request)
            span.set_attribute("http.request.method", request.method)
            span.set_attribute("http.route", path)
            span.set_attribute("http.response.status_code", answer.status)
            if answer.status >= 500:
                tracing.failed(span)
            return answer

    return middleware
