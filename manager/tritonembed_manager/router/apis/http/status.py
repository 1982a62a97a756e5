"""Health and status over HTTP: /health, the names that orchestrators ask for, /status, and the status page at /.

The orchestrators' names are those of Kubernetes, NVIDIA NIM's charts and vLLM's clients. The parent's snapshots of the
last minutes are kept, so that a page shows them as soon as it is opened.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from importlib import resources
from importlib.metadata import version
from typing import Any

from aiohttp import web

from tritonembed_manager.router.data.model_names import ServedNames

KEPT_S = 300
_EVERY_S = 1.0
_MOST_SERVERS = 64
"""The most servers with a history. With more, every page would load megabytes."""
_FIGURES = ("rate", "token_rate", "in_flight", "p50_ms", "p99_ms")

Status = Callable[[], dict[str, Any]]


class History:
    """One point per second: its time, the totals, and the figures of each server."""

    def __init__(self, status: Status, kept: int = KEPT_S) -> None:
        self._status = status
        self._points: deque[dict[str, Any]] = deque(maxlen=kept)

    def look(self) -> None:
        """Keep the current snapshot, unless it is kept already."""
        snapshot = self._status()
        at = snapshot.get("time")
        if at is None or (self._points and self._points[-1]["time"] == at):
            return
        point = {"time": at, "totals": _figures(snapshot["totals"])}
        point["servers"] = {server["id"]: _figures(server) for server in snapshot["servers"][:_MOST_SERVERS]}
        self._points.append(point)

    def points(self) -> list[dict[str, Any]]:
        """The points, from the oldest to the newest."""
        return list(self._points)

    async def keep(self) -> None:
        """Keep a snapshot every second, until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(_EVERY_S)


def _figures(of: dict[str, Any]) -> dict[str, Any]:
    return {name: of.get(name) for name in _FIGURES}


_SCRIPTS = ("status.js", "banner.js", "servers.js", "lines.js", "elements.js", "words.js")
_PAGE = {"status.html": "text/html", "status.css": "text/css", **dict.fromkeys(_SCRIPTS, "text/javascript")}
_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class StatusPage:
    """outage: the reason why requests can't be served now, empty if they can. status: the parent's last snapshot."""

    def __init__(self, outage: Callable[[], str], status: Status, history: History) -> None:
        self._outage = outage
        self._status = status
        self._history = history
        folder = resources.files(__package__ or "") / "page"
        self._files = {name: (folder / name).read_bytes() for name in _PAGE}

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/health", self.health),
            web.get("/status", self.status),
            web.get("/status/history", self.history),
            web.get("/", self.page),
            *(web.get(f"/{name}", self.page) for name in _PAGE),
        ]

    async def health(self, _request: web.Request) -> web.Response:
        """200, or 503 with the reason."""
        why = self._outage()
        return web.json_response({"status": why or "ok"}, status=503 if why else 200)

    async def status(self, _request: web.Request) -> web.Response:
        """The manager in one JSON object; control/status.py makes it."""
        snapshot = self._status()
        if not snapshot:
            return web.json_response({"error": "the manager has just started: there is no status yet"}, status=503)
        return web.json_response(snapshot, headers={"Cache-Control": "no-store"})

    async def history(self, _request: web.Request) -> web.Response:
        """The figures of the last minutes, one point per second."""
        return web.json_response({"points": self._history.points()}, headers={"Cache-Control": "no-store"})

    async def page(self, request: web.Request) -> web.Response:
        """The page, its style and its scripts."""
        name = request.path[1:] or "status.html"
        return web.Response(body=self._files[name], content_type=_PAGE[name], charset="utf-8", headers=_HEADERS)


LIVE = ("/livez", "/ping", "/v1/health/live")
READY = ("/healthz", "/readyz", "/v1/health/ready")
HEALTH = (*LIVE, *READY)
_DISTRIBUTION = "tritonembed"


class Probes:
    """outage: the reason why requests can't be served now, empty if they can. names: of the models."""

    def __init__(self, outage: Callable[[], str], names: ServedNames) -> None:
        self._outage = outage
        self._names = names
        self._version = version(_DISTRIBUTION)

    def routes(self) -> list[web.RouteDef]:
        return [
            *(web.get(path, self.live) for path in LIVE),
            *(web.get(path, self.ready) for path in READY),
            web.get("/version", self.version),
            web.get("/v1/version", self.version),
            web.get("/v1/metadata", self.metadata),
        ]

    async def live(self, _request: web.Request) -> web.Response:
        """200: this process answers."""
        return _health("Service is live.")

    async def ready(self, _request: web.Request) -> web.Response:
        """200 if requests have a server to go to and this worker does not drain, else 503 and the reason."""
        reason = self._outage()
        return _health(reason or "Service is ready.", 503 if reason else 200)

    async def version(self, _request: web.Request) -> web.Response:
        """The version of the manager, under vLLM's and NIM's names."""
        return web.json_response({"version": self._version, "release": self._version, "api": self._version})

    async def metadata(self, _request: web.Request) -> web.Response:
        """The version and the model's names, in NIM's form."""
        models = [{"shortName": name, "modelUrl": ""} for each in self._names.models for name in each.ids]
        found: dict[str, Any] = {"version": self._version, "modelInfo": models, "assetInfo": []}
        return web.json_response(found)


def _health(message: str, status: int = 200) -> web.Response:
    return web.json_response({"object": "health.response", "message": message, "status": message}, status=status)
