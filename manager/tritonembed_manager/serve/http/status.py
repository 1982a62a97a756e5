"""/health, /status, and the page for people at /."""

from collections.abc import Callable
from importlib import resources

from aiohttp import web

from tritonembed_manager.serve.http.history import History, Status

_SCRIPTS = ("status.js", "servers.js", "lines.js", "elements.js", "words.js")
_PAGE = {"status.html": "text/html", "status.css": "text/css", **dict.fromkeys(_SCRIPTS, "text/javascript")}
_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class StatusPage:
    """why_not: why nothing is served at this moment, empty when it is. status: the parent's last snapshot."""

    def __init__(self, why_not: Callable[[], str], status: Status, history: History) -> None:
        self._why_not = why_not
        self._status = status
        self._history = history
        folder = resources.files(__package__ or "") / "page"
        self._files = {name: (folder / name).read_bytes() for name in _PAGE}

    def routes(self) -> list[web.RouteDef]:
        """What it answers."""
        return [
            web.get("/health", self.health),
            web.get("/status", self.status),
            web.get("/status/history", self.history),
            web.get("/", self.page),
            *(web.get(f"/{name}", self.page) for name in _PAGE),
        ]

    async def health(self, _request: web.Request) -> web.Response:
        """200, or 503 and why."""
        why = self._why_not()
        return web.json_response({"status": why or "ok"}, status=503 if why else 200)

    async def status(self, _request: web.Request) -> web.Response:
        """The manager in one JSON object; control/snapshot.py has its form."""
        snapshot = self._status()
        if not snapshot:
            return web.json_response({"error": "the manager has just started: there is no status yet"}, status=503)
        return web.json_response(snapshot, headers={"Cache-Control": "no-store"})

    async def history(self, _request: web.Request) -> web.Response:
        """The figures of the last minutes, a point a second."""
        return web.json_response({"points": self._history.points()}, headers={"Cache-Control": "no-store"})

    async def page(self, request: web.Request) -> web.Response:
        """The page, its style and its script."""
        name = request.path[1:] or "status.html"
        return web.Response(body=self._files[name], content_type=_PAGE[name], charset="utf-8", headers=_HEADERS)
