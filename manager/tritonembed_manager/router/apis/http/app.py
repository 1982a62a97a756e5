"""The manager's HTTP API as one aiohttp application."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import aiohttp
from aiohttp import web

from tritonembed_manager.router.apis.authentication import Door
from tritonembed_manager.router.apis.grpc_health import outage
from tritonembed_manager.router.apis.http.bodies import MAX_BODY, Bodies
from tritonembed_manager.router.apis.http.cohere import Cohere
from tritonembed_manager.router.apis.http.connections import (
    IDLE_S,
    Connections,
    HalfClosingRunner,
    HttpLimits,
    note_answer,
    note_request,
)
from tritonembed_manager.router.apis.http.conversions import new_converter
from tritonembed_manager.router.apis.http.cors import Cors
from tritonembed_manager.router.apis.http.errors import FORMS, Handler, answer_errors, counting
from tritonembed_manager.router.apis.http.kserve import KServe
from tritonembed_manager.router.apis.http.kserve_admin import KServeAdmin
from tritonembed_manager.router.apis.http.openai import OpenAI
from tritonembed_manager.router.apis.http.openapi import OpenApi
from tritonembed_manager.router.apis.http.prometheus import Metrics
from tritonembed_manager.router.apis.http.rerank import CohereRerank, TeiScores, VllmScore
from tritonembed_manager.router.apis.http.score_calls import ScoreCalls
from tritonembed_manager.router.apis.http.status import History, Probes, StatusPage
from tritonembed_manager.router.apis.http.tei import Tei, TeiTokens
from tritonembed_manager.router.apis.http.vector_calls import VectorCalls
from tritonembed_manager.router.data.access_log import HEADER, enter
from tritonembed_manager.router.data.admission import Memory
from tritonembed_manager.router.data.metrics import Exemplar
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.data.tracing import Tracing, from_environment
from tritonembed_manager.router.interfaces import Dispatcher, LoadWait, noting_load

CONNECTIONS = web.AppKey("connections", Connections)


class Settings(Protocol):
    """The part of a WorkerConfig that the HTTP API reads."""

    @property
    def names(self) -> ServedNames:
        """The names of the models."""

    @property
    def admin(self) -> bool:
        """Whether requests may change servers."""

    @property
    def accept_token_ids(self) -> bool:
        """Whether token ids are accepted without a check for special tokens."""

    @property
    def cors_origins(self) -> Sequence[str]:
        """The origins whose pages may call; none without --cors-origin."""


def make_app(
    dispatcher: Dispatcher,
    settings: Settings,
    status: Callable[[], dict[str, Any]],
    is_serving: Callable[[], bool] = lambda: True,
    tracing: Tracing | None = None,
    history: History | None = None,
    *,
    limits: HttpLimits,
    memory: Memory | None = None,
    envoy: Path | None = None,
    door: Door | None = None,
    certificate: Callable[[], float | None] = lambda: None,
    exemplars: Callable[[], Mapping[int, Exemplar]] | None = None,
    is_logged: bool = False,
) -> web.Application:
    """The application, to be run by `make_runner`.

    status: returns the parent's last snapshot, {} before the first.
    is_serving: False from the moment this worker ends.
    tracing: by default as the environment configures it. door: with tenants.
    envoy: the socket of Envoy's administration, if Envoy is the data plane.
    certificate: returns when the ports' certificate expires, in seconds since 1970.
    exemplars: returns those of the latencies, by bucket; None without tracing. is_logged: if there is an access log.
    """
    tracing = from_environment() if tracing is None else tracing
    sessions: list[aiohttp.ClientSession] = []
    history = history or History(status)
    bodies = Bodies(limits, memory=memory)
    converter = new_converter()

    def reason() -> str:
        return outage(dispatcher, lambda: is_serving() and not status().get("draining"))

    async def around(_app: web.Application) -> AsyncIterator[None]:
        # No proxy is used between here and a server, whatever the environment sets for HTTP.
        async with aiohttp.ClientSession(trust_env=False) as session:
            sessions.append(session)
            keeping = [asyncio.ensure_future(work) for work in (history.keep(), bodies.keep(), app[CONNECTIONS].keep())]
            yield
            for task in keeping:
                task.cancel()
            await asyncio.gather(*keeping, converter.close(), return_exceptions=True)
        await asyncio.to_thread(tracing.close)

    cors = Cors(settings.cors_origins) if settings.cors_origins else None
    identified = identify(is_logged=is_logged)
    before = [identified, note_request] if cors is None else [identified, note_request, cors.middleware()]
    middlewares = [*before, note_load_wait, _traced(tracing), answer_errors, counting(dispatcher.refused)]
    tenants, quotas = (None, None) if door is None else (door.tenants, door.quotas)
    metrics = Metrics(dispatcher.servers, lambda: sessions[0], envoy, tenants, quotas, certificate, exemplars)
    monitor = (metrics, StatusPage(reason, status, history))
    if door is not None:
        middlewares.append(door.middleware({route.path for part in monitor for route in part.routes()}))
    app = web.Application(middlewares=middlewares, client_max_size=MAX_BODY)
    app.on_response_prepare.append(note_answer)
    app.on_response_prepare.append(add_load_wait)
    app.on_response_prepare.append(add_id)
    if door is not None:
        app.on_response_prepare.append(door.add_limits)
    if cors is not None:
        app.on_response_prepare.append(cors.add_headers)
    app[CONNECTIONS] = Connections(limits)
    traced = tracing.over(dispatcher)
    calls = VectorCalls(traced, settings.names, bodies, converter, accept_ids=settings.accept_token_ids)
    scores = ScoreCalls(traced, settings.names, bodies, converter)
    app[FORMS] = {}
    for part in (
        OpenAI(calls, settings.names, dispatcher.servers),
        Tei(calls, settings.names, dispatcher.servers),
        TeiTokens(calls, settings.names),
        Cohere(calls),
        CohereRerank(scores),
        TeiScores(scores, settings.names),
        VllmScore(scores),
        Probes(reason, settings.names),
        KServe(traced, reason, bodies, settings.names, converter),
        KServeAdmin(dispatcher, bodies, settings.names, is_allowed=settings.admin),
        OpenApi(needs_key=door is not None),
        *monitor,
    ):
        routes = with_trailing_slashes(part.routes())
        added = app.add_routes(routes)
        form = getattr(part, "errors", None)
        if form is not None:
            paths = [(route.method, route.resource.canonical) for route in added if route.resource]
            app[FORMS].update({f"{method} {path}": form for method, path in paths})
    app.cleanup_ctx.append(around)
    return app


def make_runner(
    app: web.Application, shutdown_timeout: float, tls: Callable[[], ssl.SSLContext] | None = None
) -> web.AppRunner:
    """Runs the application. shutdown_timeout: seconds for answers that are still being written at the end.

    tls: the context of the next handshake; None for plain text.
    """
    return HalfClosingRunner(
        app,
        app[CONNECTIONS],
        tls,
        keepalive_timeout=IDLE_S,
        # Seconds to receive the rest of a refused request.
        lingering_time=2.0,
        access_log=None,
        # If a client goes away, its request is cancelled and its slot is free.
        handler_cancellation=True,
        handle_signals=False,
        shutdown_timeout=shutdown_timeout,
        # `Bodies` decompresses.
        auto_decompress=False,
    )


def with_trailing_slashes(routes: Iterable[web.RouteDef]) -> list[web.RouteDef]:
    """The routes, and again with a trailing slash, except for files: some clients join URLs that way."""
    both = []
    for route in routes:
        both.append(route)
        last = route.path.rpartition("/")[2]
        if last and "." not in last:
            both.append(web.route(route.method, f"{route.path}/", route.handler))
    return both


_LOAD_WAIT = web.RequestKey("load_wait", LoadWait)


@web.middleware
async def note_load_wait(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Note whether the request waits until its model is loaded."""
    with noting_load() as wait:
        request[_LOAD_WAIT] = wait
        return await handler(request)


async def add_load_wait(request: web.Request, answer: web.StreamResponse) -> None:
    """Add the header to the answer of a request that waited for its model."""
    wait = request.get(_LOAD_WAIT)
    if wait is not None:
        answer.headers.update(wait.headers)


_ID = web.RequestKey("request_id", str)


def identify(*, is_logged: bool) -> Any:
    """A middleware that gives a POST request its id (access_log.py). is_logged: whether there is an access log."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get(HEADER)
        if request.method == "POST" and (is_logged or given is not None):
            route = request.match_info.route.resource
            via = {"http.request.method": request.method, "http.route": "" if route is None else route.canonical}
            request[_ID] = enter(given, via, is_logged=is_logged)
        return await handler(request)

    return middleware


async def add_id(request: web.Request, answer: web.StreamResponse) -> None:
    """Repeat a request's id in its answer."""
    request_id = request.get(_ID)
    if request_id:
        answer.headers[HEADER] = request_id


def _traced(tracing: Tracing) -> Any:
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        route = request.match_info.route.resource
        path = "" if route is None else route.canonical
        # Spans of probes and pages would hide the spans of requests.
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
