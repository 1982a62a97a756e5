"""KServe v2 over HTTP: the repository, trace and log settings, which every server is told; and shared memory."""

import base64
import binascii
from typing import Any

from aiohttp import web
from tritonclient.grpc import service_pb2

from tritonembed_manager.serve.every_server import call_all
from tritonembed_manager.serve.http.bodies import Bodies, parse_object
from tritonembed_manager.serve.http.errors import BadRequest
from tritonembed_manager.serve.http.fields import NO_SHARED_MEMORY, read_object
from tritonembed_manager.serve.http.proto_json import to_json
from tritonembed_manager.serve.http.settings_json import log_answer, log_request, trace_answer, trace_request
from tritonembed_manager.serve.model import Dispatcher


class KServeAdmin:
    """What changes servers changes all of them that are ready."""

    def __init__(self, dispatcher: Dispatcher, bodies: Bodies) -> None:
        self._dispatcher = dispatcher
        self._bodies = bodies

    def routes(self) -> list[web.RouteDef]:
        """What it answers."""
        trace = ("/v2/trace/setting", "/v2/models/{model}/trace/setting")
        return [
            web.post("/v2/repository/index", self.index),
            web.post("/v2/repository/models/{model}/load", self.load),
            web.post("/v2/repository/models/{model}/unload", self.unload),
            *(web.get(path, self.trace) for path in trace),
            *(web.post(path, self.trace) for path in trace),
            web.get("/v2/logging", self.log),
            web.post("/v2/logging", self.log),
            web.route("*", "/v2/{kind:(?:system|cuda)sharedmemory}{rest:/.*}", self.shared_memory),
        ]

    async def index(self, request: web.Request) -> web.Response:
        """The models of the repository."""
        asked = await self._body(request)
        ready = asked.get("ready", False)
        if not isinstance(ready, bool):
            raise BadRequest("ready must be true or false")
        message = service_pb2.RepositoryIndexRequest(ready=ready).SerializeToString()
        encoded = await self._dispatcher.call("RepositoryIndex", message, timeout=None)
        models = service_pb2.RepositoryIndexResponse.FromString(encoded).models
        return web.json_response([{name: text for name, text in to_json(model).items() if text} for model in models])

    async def load(self, request: web.Request) -> web.Response:
        """Load a model, or load it again."""
        message = service_pb2.RepositoryModelLoadRequest(model_name=request.match_info["model"])
        for name, value in read_object((await self._body(request)).get("parameters"), "parameters").items():
            if not isinstance(value, str):
                raise BadRequest("a parameter of a load must be a string")
            if name.startswith("file:"):
                message.parameters[name].bytes_param = _decoded(value)
            else:
                message.parameters[name].string_param = value
        await self._tell_all("RepositoryModelLoad", message)
        return web.Response()

    async def unload(self, request: web.Request) -> web.Response:
        """Unload a model."""
        message = service_pb2.RepositoryModelUnloadRequest(model_name=request.match_info["model"])
        for name, value in read_object((await self._body(request)).get("parameters"), "parameters").items():
            if not isinstance(value, bool):
                raise BadRequest("a parameter of an unload must be true or false")
            message.parameters[name].bool_param = value
        await self._tell_all("RepositoryModelUnload", message)
        return web.Response()

    async def trace(self, request: web.Request) -> web.Response:
        """Trace settings, of one model or of all; POST changes them."""
        changes = await self._settings(request)
        message = trace_request(request.match_info.get("model", ""), changes)
        return web.json_response(trace_answer(await self._set("TraceSetting", message, changes)))

    async def log(self, request: web.Request) -> web.Response:
        """Log settings; POST changes them."""
        changes = await self._settings(request)
        return web.json_response(log_answer(await self._set("LogSettings", log_request(changes), changes)))

    async def shared_memory(self, _request: web.Request) -> web.Response:
        """It makes no sense here."""
        raise BadRequest(NO_SHARED_MEMORY, status=501)

    async def _tell_all(self, method: str, message: Any) -> None:
        await call_all(self._dispatcher, method, message.SerializeToString(), timeout=None)

    async def _set(self, method: str, message: bytes, changes: dict[str, Any]) -> bytes:
        if not changes:
            # Any server can tell what is set.
            return await self._dispatcher.call(method, message, timeout=None)
        return (await call_all(self._dispatcher, method, message, timeout=None))[0]

    async def _settings(self, request: web.Request) -> dict[str, Any]:
        return await self._body(request) if request.method == "POST" else {}

    async def _body(self, request: web.Request) -> dict[str, Any]:
        async with self._bodies.read(request) as body:
            return parse_object(body) if body.strip() else {}


def _decoded(value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest("the content of a file must be base64") from None
