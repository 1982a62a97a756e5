"""Health, version and metadata under the names that orchestrators, NVIDIA NIM's charts and vLLM's clients ask for."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from aiohttp import web

from tritonembed_manager.router.data.model_names import ServedNames

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
