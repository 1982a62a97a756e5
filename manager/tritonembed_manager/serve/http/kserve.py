"""KServe v2 over HTTP, every route of Triton's, over the same calls as its gRPC: routed, counted and retried alike.

Nothing here needs the HTTP port of a server.
"""

from collections.abc import Callable
from typing import Any

from aiohttp import web
from tritonclient.grpc import service_pb2

from tritonembed_manager.serve import statistics
from tritonembed_manager.serve.every_server import call_all
from tritonembed_manager.serve.http.bodies import Bodies
from tritonembed_manager.serve.http.errors import BadRequest
from tritonembed_manager.serve.http.infer_answer import HEADER_LENGTH, to_answer
from tritonembed_manager.serve.http.infer_raw import read_raw
from tritonembed_manager.serve.http.infer_request import InferRequest, read_request
from tritonembed_manager.serve.http.proto_json import to_json
from tritonembed_manager.serve.model import Dispatcher
from tritonembed_manager.serve.tracing import metadata_of

_MODELS = ("/v2/models/{model}", "/v2/models/{model}/versions/{version:[0-9]+}")
_NOT_READY = 400
"""As Triton has it: KServe asks for a 4xx."""


class KServe:
    """Inference and what can be asked about models; kserve_admin.py has what changes servers.

    why_not: why nothing is served at this moment, empty when it is.
    """

    def __init__(self, dispatcher: Dispatcher, why_not: Callable[[], str], bodies: Bodies) -> None:
        self._dispatcher = dispatcher
        self._why_not = why_not
        self._bodies = bodies

    def routes(self) -> list[web.RouteDef]:
        """What it answers."""
        return [
            web.get("/v2", self.server),
            web.get("/v2/health/live", self.live),
            web.get("/v2/health/ready", self.ready),
            web.get("/v2/models/stats", self.stats),
            *(web.get(path, self.model) for path in _MODELS),
            *(web.get(f"{path}/ready", self.model_ready) for path in _MODELS),
            *(web.get(f"{path}/config", self.config) for path in _MODELS),
            *(web.get(f"{path}/stats", self.stats) for path in _MODELS),
            *(web.post(f"{path}/infer", self.infer) for path in _MODELS),
        ]

    async def live(self, _request: web.Request) -> web.Response:
        """This process answers."""
        return web.Response()

    async def ready(self, _request: web.Request) -> web.Response:
        """200 when requests have a server to go to, and this one does not drain."""
        return web.Response(status=_NOT_READY if self._why_not() else 200)

    async def server(self, _request: web.Request) -> web.Response:
        """Name, version and extensions of the servers."""
        encoded = await self._dispatcher.call("ServerMetadata", b"", timeout=None)
        return web.json_response(to_json(service_pb2.ServerMetadataResponse.FromString(encoded)))

    async def model(self, request: web.Request) -> web.Response:
        """A model's inputs and outputs."""
        return web.json_response(to_json(await self._metadata(request)))

    async def config(self, request: web.Request) -> web.Response:
        """A model's configuration."""
        encoded = await self._call("ModelConfig", request, service_pb2.ModelConfigRequest)
        return web.json_response(to_json(service_pb2.ModelConfigResponse.FromString(encoded).config))

    async def model_ready(self, request: web.Request) -> web.Response:
        """200 when a server is ready and has the model ready."""
        if not self._why_not():
            encoded = await self._call("ModelReady", request, service_pb2.ModelReadyRequest)
            if service_pb2.ModelReadyResponse.FromString(encoded).ready:
                return web.Response()
        raise BadRequest("Model version not ready", status=_NOT_READY)

    async def stats(self, request: web.Request) -> web.Response:
        """Statistics of one model or of all, added up over the servers."""
        asked = service_pb2.ModelStatisticsRequest(**_name_and_version(request)).SerializeToString()
        # Servers that have just broken do not count.
        answers = await call_all(self._dispatcher, "ModelStatistics", asked, timeout=None, or_unavailable=True)
        total = service_pb2.ModelStatisticsResponse.FromString(statistics.add_up(answers))
        return web.json_response(to_json(total, unset=True))

    async def infer(self, request: web.Request) -> web.Response:
        """An inference; JSON or the binary extension, both ways."""
        async with self._bodies.read(request) as body:
            asked = await self._read(request, body)
            answer = await self._dispatcher.infer(
                asked.message.SerializeToString(), timeout=None, metadata=metadata_of(request.headers)
            )
        return to_answer(asked, answer)

    async def _read(self, request: web.Request, body: bytes) -> InferRequest:
        length = request.headers.get(HEADER_LENGTH)
        if length is not None and not (length.isascii() and length.isdigit() and len(length) < 20):
            raise BadRequest(f"{HEADER_LENGTH} must be a number")
        named = _name_and_version(request)
        if length is not None and int(length) == 0:
            return read_raw(body, await self._metadata(request), named["version"])
        return read_request(body, None if length is None else int(length), named["name"], named["version"])

    async def _metadata(self, request: web.Request) -> Any:
        encoded = await self._call("ModelMetadata", request, service_pb2.ModelMetadataRequest)
        return service_pb2.ModelMetadataResponse.FromString(encoded)

    async def _call(self, method: str, request: web.Request, message: Any) -> bytes:
        asked = message(**_name_and_version(request)).SerializeToString()
        return await self._dispatcher.call(method, asked, timeout=None)


def _name_and_version(request: web.Request) -> dict[str, str]:
    return {"name": request.match_info.get("model", ""), "version": request.match_info.get("version", "")}
