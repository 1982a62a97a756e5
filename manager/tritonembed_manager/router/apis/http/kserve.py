"""KServe v2 over HTTP: inference, health and models; checks the model and version in a request's path.

The routes are Triton's. They use the same calls as KServe over gRPC, so requests are routed, counted and retried alike,
and no server needs an HTTP port.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from aiohttp import web
from tritonclient.grpc import service_pb2

from tritonembed_manager.router.apis.authentication import http_caller
from tritonembed_manager.router.apis.http import vector_requests
from tritonembed_manager.router.apis.http.bodies import Bodies
from tritonembed_manager.router.apis.http.converter import Converted, Converter
from tritonembed_manager.router.apis.http.errors import BadRequest
from tritonembed_manager.router.apis.http.kserve_json import (
    HEADER_LENGTH,
    InferRequest,
    read_raw,
    read_request,
    to_answer,
    to_json,
)
from tritonembed_manager.router.apis.http.tensor_json import LITELLM_ROUTE, Numbers
from tritonembed_manager.router.apis.http.vector_requests import behind_models, model_pattern, of_path
from tritonembed_manager.router.apis.kserve_calls import add_up_statistics, call_all
from tritonembed_manager.router.data import spaces
from tritonembed_manager.router.data.model_names import ServedNames, check_name, name_as_asked
from tritonembed_manager.router.data.tenants import check_model
from tritonembed_manager.router.data.tracing import metadata_of
from tritonembed_manager.router.interfaces import Dispatcher
from tritonembed_protocol.served import ServedModel


class ModelPath(NamedTuple):
    """A model in a route; name and version are empty if the route has none.

    name: Triton's name of the model. alias: the name in the route, if it differs.
    """

    name: str
    version: str
    alias: str


def read_model(request: web.Request, names: ServedNames) -> ModelPath:
    """The model in a request's path. Raises BadRequest and DispatchError (400, 403)."""
    try:
        # Invalid UTF-8 would stay percent-encoded, as if the name had a percent sign.
        unquote_to_bytes(request.rel_url.raw_path).decode()
    except UnicodeDecodeError:
        raise BadRequest("the path is not UTF-8") from None
    asked, version = request.match_info.get("model", ""), request.match_info.get("version", "")
    name = names.to_model(asked)
    if "model" in request.match_info:
        check_name(name, version)
        check_model(name)
    return ModelPath(name, version, "" if name == asked else asked)


_NOT_READY = 400
"""Triton's status; KServe asks for a 4xx."""


class KServe:
    """Inference, health and metadata; kserve_admin.py has the routes that change servers.

    outage: the reason why requests can't be served now, empty if they can. names: aliases of the ensemble.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        outage: Callable[[], str],
        bodies: Bodies,
        names: ServedNames,
        converter: Converter,
    ) -> None:
        self._converter = converter
        self._dispatcher = dispatcher
        self._names = names
        self._outage = outage
        self._bodies = bodies

    def routes(self) -> list[web.RouteDef]:
        model = f"/v2/models/{model_pattern(self._names)}"
        both = (model, f"{model}/versions/{{version:[0-9]+}}")
        return [
            web.get("/v2", self.server),
            web.get("/v2/health/live", self.live),
            web.get("/v2/health/ready", self.ready),
            web.get("/v2/models/stats", self.stats),
            *(web.get(path, self.model) for path in both),
            *(web.get(f"{path}/ready", self.model_ready) for path in both),
            *(web.get(f"{path}/config", self.config) for path in both),
            *(web.get(f"{path}/stats", self.stats) for path in both),
            *(web.post(f"{path}/infer", self.infer) for path in both),
            web.post(LITELLM_ROUTE, self.infer_for_litellm),
            *behind_models([web.post(LITELLM_ROUTE, self.infer_for_litellm)], self._names),
        ]

    async def live(self, _request: web.Request) -> web.Response:
        """200: this process answers."""
        return web.Response()

    async def ready(self, _request: web.Request) -> web.Response:
        """200 if requests have a server to go to and this worker does not drain."""
        return web.Response(status=_NOT_READY if self._outage() else 200)

    async def server(self, _request: web.Request) -> web.Response:
        """Name, version and extensions of the servers."""
        encoded = await self._dispatcher.call("ServerMetadata", b"", timeout=None)
        return web.json_response(to_json(service_pb2.ServerMetadataResponse.FromString(encoded)))

    async def model(self, request: web.Request) -> web.Response:
        """A model's inputs and outputs."""
        return web.json_response(to_json(await self._call("ModelMetadata", read_model(request, self._names))))

    async def config(self, request: web.Request) -> web.Response:
        """A model's configuration."""
        asked = read_model(request, self._names)
        answer = await self._call("ModelConfig", asked)
        return web.json_response(to_json(answer.config))

    async def model_ready(self, request: web.Request) -> web.Response:
        """200 if a server is ready and has the model ready."""
        model = read_model(request, self._names)
        has_server = not self._names.more or self._dispatcher.serving(model.name) or self._is_unknown(model.name)
        if not self._outage() and has_server and (await self._call("ModelReady", model)).ready:
            return web.Response()
        raise BadRequest("Model version not ready", status=_NOT_READY)

    def _is_unknown(self, model: str) -> bool:
        """Whether no served model has that name. If so, a server or the dispatcher answers."""
        return self._names.of_part(model) is None

    async def stats(self, request: web.Request) -> web.Response:
        """Statistics of one model or of all models, added up over the servers."""
        name, version, alias = read_model(request, self._names)
        asked = service_pb2.ModelStatisticsRequest(name=name, version=version).SerializeToString()
        # Servers that have just broken are left out.
        answers = await call_all(
            self._dispatcher, "ModelStatistics", asked, timeout=None, or_unavailable=True, model=name
        )
        total = service_pb2.ModelStatisticsResponse.FromString(add_up_statistics(answers))
        if alias:
            name_as_asked(total, alias)
        return web.json_response(to_json(total, unset=True))

    async def infer(self, request: web.Request) -> web.Response:
        """An inference, with JSON or the binary extension in both directions."""
        return await self._infer(request, read_model(request, self._names))

    async def infer_for_litellm(self, request: web.Request) -> web.Response:
        """The vectors of `input_text` as numbers, for litellm's `triton/` provider."""
        model = vector_requests.read_model({}, of_path(request, self._names)).name
        check_model(model)
        return await self._infer(request, ModelPath(model, "", ""), of_litellm=True)

    async def _infer(self, request: web.Request, model: ModelPath, *, of_litellm: bool = False) -> web.Response:
        async with self._bodies.read_chunks(request) as chunks:
            asked = await self._read(request, chunks, model, of_litellm=of_litellm)
            [message] = asked.messages

            async def infer(message: bytes) -> bytes:
                return await self._dispatcher.infer(
                    message, timeout=None, metadata=metadata_of(request.headers), caller=http_caller(request)
                )

            answer = await self._names.infer(message, infer)
        numbers = Numbers(tuple(asked.info["numbers"]["names"]), asked.info["numbers"]["also_bytes"])
        found = to_answer(InferRequest(None, **{**asked.info, "numbers": numbers}), answer, model.alias)
        found.headers.update(spaces.headers_of([spaces.in_answer(answer)]))
        return found

    async def _read(
        self, request: web.Request, chunks: list[bytes], model: ModelPath, *, of_litellm: bool
    ) -> Converted:
        length = request.headers.get(HEADER_LENGTH)
        if length is not None and not (length.isascii() and length.isdigit() and len(length) < 20):
            raise BadRequest(f"{HEADER_LENGTH} must be a number")
        if length is not None and int(length) == 0:
            metadata = await self._call("ModelMetadata", ModelPath(model.name, model.version, ""))
            encoded = metadata.SerializeToString().hex()
            return await self._converter.convert("raw", chunks, json_size=0, metadata=encoded, version=model.version)
        size = None if length is None else int(length)
        served = asdict((self._names.of_part(model.name) or self._names).served)
        return await self._converter.convert(
            "kserve",
            chunks,
            json_size=size,
            header_length=size,
            model=model.name,
            version=model.version,
            of_litellm=of_litellm,
            served=served,
        )

    async def _call(self, method: str, model: ModelPath) -> Any:
        """The answer of any server, with the model's name as in the request."""
        asked = getattr(service_pb2, f"{method}Request")(name=model.name, version=model.version)
        encoded = await self._dispatcher.call(method, asked.SerializeToString(), timeout=None)
        answer = getattr(service_pb2, f"{method}Response").FromString(encoded)
        if model.alias:
            name_as_asked(answer, model.alias)
        return answer


def convert(
    body: bytes, header_length: int | None, model: str, version: str, served: dict[str, Any], of_litellm: bool = False
) -> Converted:
    """info: which outputs are binary, and which are numbers; see InferRequest."""
    return _converted(read_request(body, header_length, model, version, of_litellm, ServedModel(**served)))


def convert_raw(body: bytes, metadata: str, version: str) -> Converted:
    """metadata: the model's encoded ModelMetadataResponse, in hexadecimal. info: as for `convert`."""
    return _converted(read_raw(body, service_pb2.ModelMetadataResponse.FromString(bytes.fromhex(metadata)), version))


def _converted(request: InferRequest) -> Converted:
    info = {
        "binary": request.binary,
        "binary_by_default": request.binary_by_default,
        "numbers": asdict(request.numbers),
    }
    return Converted(info, [request.message.SerializeToString()])
