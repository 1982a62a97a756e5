"""CORS: lets pages of other origins call the API from a browser (--cors-origin).

A browser asks first, with OPTIONS and without a key (a preflight). An answer that names the page's origin lets the page
send its request, with its headers, and read the answer. Other pages get no such header.
"""

import re
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from tritonembed_manager.errors import StartError
from tritonembed_manager.router.apis.http.errors import Handler
from tritonembed_protocol.space import HEADER

ANY = "*"
_EXPOSED = ", ".join(
    (
        HEADER,
        "Retry-After",
        "Retry-After-Ms",
        *(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")),
        "Inference-Header-Content-Length",
    )
)
_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/\s?#@,]+")
_MAX_AGE_S = 600
"""How long a browser remembers the answer to a preflight."""


def read_origins(given: Sequence[str]) -> tuple[str, ...]:
    """The origins as browsers send them. Raises StartError."""
    for origin in given:
        if origin != ANY and not _ORIGIN.fullmatch(origin):
            raise StartError("--cors-origin: an origin is * or scheme://host or scheme://host:port, without a path")
    return tuple(origin.lower() for origin in dict.fromkeys(given))


class Cors:
    """origins: those that may call, such as `https://app.example`; `*` for all."""

    def __init__(self, origins: Sequence[str]) -> None:
        self._all = ANY in origins
        self._origins = frozenset(origins)

    def middleware(self) -> Any:
        """Answers preflights, before the key is checked."""

        @web.middleware
        async def preflight(request: web.Request, handler: Handler) -> web.StreamResponse:
            asked = request.headers.get("Access-Control-Request-Method")
            if request.method != "OPTIONS" or asked is None or not self._allowed(request):
                return await handler(request)
            headers = {
                "Access-Control-Allow-Methods": "GET, POST",
                "Access-Control-Max-Age": str(_MAX_AGE_S),
            }
            wanted = request.headers.get("Access-Control-Request-Headers")
            if wanted:
                headers["Access-Control-Allow-Headers"] = wanted
            return web.Response(status=204, headers=headers)

        return preflight

    async def add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Name the allowed origin in an answer, before it is sent."""
        if not self._all:
            # A cache must not show one origin's answer to another.
            response.headers.add("Vary", "Origin")
        origin = self._allowed(request)
        if origin:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = _EXPOSED

    def _allowed(self, request: web.Request) -> str:
        """The origin to allow; empty for none."""
        origin = request.headers.get("Origin", "")
        if not origin:
            return ""
        return ANY if self._all else origin if origin in self._origins else ""
