"""KServe v2 over HTTP: the routes for the repository, trace and log settings, and shared memory.

Changes go to every server. Requests from browsers are refused: any web page can make its visitor's browser send
requests to a manager that only the visitor can reach.
"""

from typing import Any

from aiohttp import web
from tritonclient.grpc import service_pb2

from tritonembed_manager.router.apis.http.bodies import Bodies, parse_object
from tritonembed_manager.router.apis.http.errors import BadRequest
from tritonembed_manager.router.apis.http.kserve import read_model
from tritonembed_manager.router.apis.http.kserve_json import read_object, to_json
from tritonembed_manager.router.apis.kserve_calls import call_all, check_admin, check_load
from tritonembed_manager.router.data.envelope import NO_SHARED_MEMORY
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.interfaces import Dispatcher

_LISTS = ("trace_level",)


def trace_request(model: str, settings: dict[str, Any]) -> bytes:
    """settings: the changes, each a value, a list of values, or null for the default. Raises BadRequest."""
    request = service_pb2.TraceSettingRequest(model_name=model)
    for name, value in settings.items():
        values = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(one, str | int) for one in values):
            raise BadRequest("a trace setting must be a string, a number, a list of strings, or null")
        # A setting without a value returns to its default.
        request.settings[name].value.extend(map(str, values))
    return bytes(request.SerializeToString())


def trace_answer(encoded: bytes) -> dict[str, Any]:
    """The current settings."""
    settings = service_pb2.TraceSettingResponse.FromString(encoded).settings
    return {
        name: list(found.value) if name in _LISTS or len(found.value) != 1 else found.value[0]
        for name, found in settings.items()
    }


def log_request(settings: dict[str, Any]) -> bytes:
    """settings: the changes. Raises BadRequest."""
    request = service_pb2.LogSettingsRequest()
    for name, value in settings.items():
        if isinstance(value, bool):
            request.settings[name].bool_param = value
        elif isinstance(value, int) and 0 <= value < 2**32:
            request.settings[name].uint32_param = value
        elif isinstance(value, str):
            request.settings[name].string_param = value
        else:
            raise BadRequest("a log setting must be a string, a bool or a whole number")
    return bytes(request.SerializeToString())


def log_answer(encoded: bytes) -> dict[str, Any]:
    """The current settings."""
    settings = service_pb2.LogSettingsResponse.FromString(encoded).settings
    return {name: getattr(found, found.WhichOneof("parameter_choice")) for name, found in settings.items()}


_TYPES = ("application/json", "application/octet-stream")
"""Types that a page of another site may send only with the server's consent (CORS). Triton's asyncio client sends the
second; its blocking client sends no type at all."""


def refuse_browsers(request: web.Request) -> None:
    """Raises BadRequest (403, 415) for requests that a browser sends, or may send without asking for consent.

    Browsers send Origin with every POST, and Sec-Fetch-Site. No page of ours uses these routes, so a page of this very
    host is refused too: under DNS rebinding, any page can be one.
    """
    if "Origin" in request.headers or "Sec-Fetch-Site" in request.headers:
        raise BadRequest("this call changes servers, and web pages may not make it", status=403)
    given = (header.partition(";")[0].strip().lower() for header in request.headers.getall("Content-Type", ()))
    if any(kind not in _TYPES for kind in given):
        raise BadRequest("this call changes servers: send it with Content-Type: application/json", status=415)


class KServeAdmin:
    """Changes go to all servers that are ready. is_allowed: whether changes are allowed (--admin)."""

    def __init__(self, dispatcher: Dispatcher, bodies: Bodies, names: ServedNames, *, is_allowed: bool) -> None:
        self._names = names
        self._dispatcher = dispatcher
        self._bodies = bodies
        self._is_allowed = is_allowed

    def routes(self) -> list[web.RouteDef]:
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
        self._check_change(request)
        message = service_pb2.RepositoryModelLoadRequest(model_name=read_model(request, self._names).name)
        check_load(read_object((await self._body(request)).get("parameters"), "parameters"))
        await self._send_to_all("RepositoryModelLoad", message)
        return web.Response()

    async def unload(self, request: web.Request) -> web.Response:
        """Unload a model on every ready server."""
        self._check_change(request)
        message = service_pb2.RepositoryModelUnloadRequest(model_name=read_model(request, self._names).name)
        for name, value in read_object((await self._body(request)).get("parameters"), "parameters").items():
            if not isinstance(value, bool):
                raise BadRequest("a parameter of an unload must be true or false")
            message.parameters[name].bool_param = value
        await self._send_to_all("RepositoryModelUnload", message)
        return web.Response()

    async def trace(self, request: web.Request) -> web.Response:
        """Trace settings, of one model or of all; POST changes them."""
        changes = await self._settings(request)
        message = trace_request(read_model(request, self._names).name, changes)
        return web.json_response(trace_answer(await self._set("TraceSetting", message, changes)))

    async def log(self, request: web.Request) -> web.Response:
        """Log settings; POST changes them."""
        changes = await self._settings(request)
        return web.json_response(log_answer(await self._set("LogSettings", log_request(changes), changes)))

    async def shared_memory(self, _request: web.Request) -> web.Response:
        """Always refused: shared memory belongs to one server."""
        raise BadRequest(NO_SHARED_MEMORY, status=501)

    def _check_change(self, request: web.Request) -> None:
        check_admin(self._is_allowed)
        refuse_browsers(request)

    async def _send_to_all(self, method: str, message: Any) -> None:
        await call_all(self._dispatcher, method, message.SerializeToString(), timeout=None)

    async def _set(self, method: str, message: bytes, changes: dict[str, Any]) -> bytes:
        if not changes:
            # All servers have the same settings, so any of them can answer.
            return await self._dispatcher.call(method, message, timeout=None)
        return (await call_all(self._dispatcher, method, message, timeout=None))[0]

    async def _settings(self, request: web.Request) -> dict[str, Any]:
        if request.method != "POST":
            return {}
        self._check_change(request)
        return await self._body(request)

    async def _body(self, request: web.Request) -> dict[str, Any]:
        async with self._bodies.read(request) as body:
            return parse_object(body) if body.strip() else {}
