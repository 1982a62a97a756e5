"""/health, /status, and the status page at /.

The last minutes of the parent's snapshots are kept, so that a page that was just opened has something to show.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from importlib import resources
from typing import Any

from aiohttp import web

KEPT_S = 300
_EVERY_S = 1.0
_MOST_SERVERS = 64
"""Servers with a history. With more, every page that is opened would load megabytes."""
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
        """From the oldest to the newest."""
        return list(self._points)

    async def keep(self) -> None:
        """Look every second, until cancelled."""
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
