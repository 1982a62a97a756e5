"""The dispatcher of a worker that serves several models, or several versions of one: chosen by a request's name.

Each version has a TritonDispatcher with its servers, and its own queue, windows and failover. All of them share the
admission of requests, the counts, and the quarantine. So a model that fails or is overloaded holds up no other model,
except through the shared limits.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import grpc
from tritonclient.grpc import service_pb2

from tritonembed_manager.router.data.dispatcher import NO_ADAPTER, ElsewhereError, TritonDispatcher
from tritonembed_manager.router.data.model_names import ADAPTER, ServedNames, front, name_as_asked
from tritonembed_manager.router.data.protobuf import BYTES, Fields, WrongMessage, field, parameter, text_parameter
from tritonembed_manager.router.data.request import read
from tritonembed_manager.router.data.spaces import in_metadata
from tritonembed_manager.router.data.versions import ModelVersions, Version
from tritonembed_manager.router.interfaces import (
    Admission,
    Caller,
    DispatchError,
    Metadata,
    ServerState,
    ServerView,
    note_load,
)
from tritonembed_protocol.served import ServedModel

_NAME_FIELD = {
    "ModelInfer": 1,
    "ModelReady": 1,
    "ModelMetadata": 1,
    "ModelConfig": 1,
    "ModelStatistics": 1,
    "RepositoryModelLoad": 2,
    "RepositoryModelUnload": 2,
    "TraceSetting": 2,
}
"""The number of the field with the model's name, by method. Other methods are about no model."""
_LOADING = ("ModelInfer", "ModelMetadata", "ModelConfig")
"""Calls that load a model. Calls about readiness or statistics do not, because monitors make them."""
_AWAY = (ServerState.UNLOADED, ServerState.DRAINING, ServerState.STARTING)
_GONE = (ServerState.UNLOADED, ServerState.DRAINING)
NOT_IN_MEMORY = "the manager is draining, and the model is not in memory: send the request to another manager"
_AGAIN_S = 0.5
"""Seconds between two requests to the parent for a model."""
UNKNOWN = "there is no such model; the server's list of models names those that there are"


class ModelsDispatcher:
    """A Dispatcher; interfaces.py describes its methods. make: a dispatcher for a version of a model.

    wanted: called with the ensemble of a model that is not in memory when a request waits for it.
    """

    def __init__(
        self,
        names: ServedNames,
        make: Callable[[ServedModel], TritonDispatcher],
        wanted: Callable[[str], None] = lambda _model: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wanted = wanted
        self._clock = clock
        self._told: dict[str, float] = {}
        self._names = names
        self._make = make
        self.changed: Callable[[], None] = lambda: None
        """Called when servers that get requests may have changed."""
        self._models: dict[str, ModelVersions] = {}
        self._is_draining = False
        self.update([])

    @property
    def dispatchers(self) -> list[TritonDispatcher]:
        """The dispatchers of all versions of all models, also of models that finish."""
        return [one for model in self._models.values() for one in model.dispatchers]

    def update(self, views: Sequence[ServerView]) -> None:
        """Take over the parent's servers. To be called also when the names have changed."""
        for names in self._names.loaded:
            if names.served.name not in self._models:
                self._models[names.served.name] = ModelVersions(names.served, self._make, lambda: self.changed())
        for name, model in self._models.items():
            model.update([view for view in views if view.ensemble == name])
        self._refuse_if_draining()
        known = {names.served.name for names in self._names.loaded}
        for name in [name for name in self._models if name not in known]:
            if all(one.is_idle and not one.pool.servers() for one in self._models[name].dispatchers):
                del self._models[name]

    def ask_again(self) -> None:
        """Ask for the models for which requests wait. Some requests have waited since before the model was unloaded."""
        for model in self._models.values():
            if not all(one.is_idle for one in model.dispatchers):
                self._load(model)

    def drain(self) -> None:
        """Load no more models. Requests that wait for a model are refused at once, so that they can go elsewhere.

        Requests for a model whose servers are already starting go on waiting.
        """
        self._is_draining = True
        self._refuse_if_draining()

    def _refuse_if_draining(self) -> None:
        for model in self._models.values() if self._is_draining else ():
            if (views := model.views()) and all(view.state in _GONE for view in views):
                for one in model.dispatchers:
                    one.refuse_waiting(DispatchError(grpc.StatusCode.UNAVAILABLE, NOT_IN_MEMORY))

    async def infer(
        self,
        request: bytes,
        *,
        timeout: float | None,
        metadata: Metadata,
        caller: Caller,
        admitted: Admission | None = None,
    ) -> bytes:
        asked, end = front(request)
        asked = asked or _name(request, 1)
        names = self._names.of_part(asked)
        if names is None:
            raise self._unknown(request, admitted)
        base = self._names.base_of(names)
        found = self._models[base.served.name]
        adapter = names.served.name if names.served.base else ""
        if adapter:
            if text_parameter(request, ADAPTER) not in ("", adapter):
                raise self._refusal(grpc.StatusCode.INVALID_ARGUMENT, NO_ADAPTER, admitted)
            renamed = field(1, base.served.of_part(asked, names.served).encode())
            # If the field occurs twice, the last counts.
            request = (renamed + request[end:] if end else request + renamed) + parameter(ADAPTER, adapter)
        began = self._clock()
        is_loaded = self._load(found)
        if admitted is not None:
            answer = await self._infer(found, request, metadata, admitted, adapter)
        else:
            with self.admitted(len(request), timeout=timeout, caller=caller) as own:
                answer = await self._infer(found, request, metadata, own, adapter)
        if not is_loaded:
            note_load(self._clock() - began)
        return field(1, asked.encode()) + answer[front(answer)[1] :] if adapter else answer

    async def _infer(
        self, model: ModelVersions, request: bytes, metadata: Metadata, admitted: Admission, adapter: str
    ) -> bytes:
        """Send a request to a version of its model, and to another version if that can't take it after all."""
        space = (read(request).space or in_metadata(metadata)) if model.is_split else ""
        if not admitted.messages and model.is_full():
            raise self._first.admission.overload("the model has its maximum of requests")
        tried: list[Version] = []
        chosen = model.choose(admitted, space)
        admitted.messages += 1
        while True:
            try:
                return await chosen.dispatcher.infer(
                    request,
                    timeout=None,
                    metadata=metadata,
                    caller=admitted.caller,
                    admitted=admitted,
                    adapter=adapter,
                )
            except ElsewhereError:
                tried.append(chosen)
                chosen = model.choose(admitted, tried=tried)

    def admitted(
        self, size: int, *, timeout: float | None, caller: Caller, work: int | None = None, model: str = ""
    ) -> AbstractContextManager[Admission]:
        return self._first.admitted(size, timeout=timeout, caller=caller, work=work, model=model)

    def refused(self, code: grpc.StatusCode) -> None:
        self._first.refused(code)

    async def call(self, method: str, request: bytes, *, timeout: float | None, server: str | None = None) -> bytes:
        name = _name(request, _NAME_FIELD[method]) if method in _NAME_FIELD else ""
        names = self._names.of_part(name)
        if names is not None and names.served.base:
            return await self._call_adapter(method, request, name, names, timeout=timeout, server=server)
        all_of_them = self.dispatchers
        if server is not None:
            found = next((one for one in all_of_them if one.pool.get(server)), self._first)
        elif not name:
            found = next((one for one in all_of_them if one.pool.usable()), self._first)
        elif (model := self._of(name)) is None:
            raise DispatchError(grpc.StatusCode.NOT_FOUND, UNKNOWN)
        else:
            found = model.heaviest()
            if method in _LOADING and not self._load(model):
                await found.until_usable(timeout)
        return await found.call(method, request, timeout=timeout, server=server)

    def servers(self) -> list[ServerView]:
        return [view for model in self._models.values() for view in model.views()]

    def serving(self, model: str = "") -> list[str]:
        if model:
            found = self._of(model)
            return [] if found is None else found.serving()
        # A server with several models counts only once.
        by_address: dict[str, str] = {}
        for one in self.dispatchers:
            for server in one.pool.serving:
                by_address.setdefault(server.view.address, server.key)
        return list(by_address.values())

    @property
    def _first(self) -> TritonDispatcher:
        return self._models[self._names.served.name].heaviest()

    def _load(self, found: ModelVersions) -> bool:
        """Whether the model of a request is in memory. If it is not, ask for it."""
        if found.is_usable or not any(view.state in _AWAY for view in found.views()):
            return True
        now = self._clock()
        model = found.served.name
        if now - self._told.get(model, -_AGAIN_S) >= _AGAIN_S:
            self._told[model] = now
            self._wanted(model)
        return False

    async def _call_adapter(
        self, method: str, request: bytes, name: str, names: ServedNames, *, timeout: float | None, server: str | None
    ) -> bytes:
        """The answer about the base model, with the adapter's name."""
        if method.startswith("Repository"):
            raise DispatchError(grpc.StatusCode.INVALID_ARGUMENT, "an adapter is loaded and unloaded with its model")
        part = self._names.base_of(names).served.of_part(name, names.served)
        answer = await self.call(
            method, request + field(_NAME_FIELD[method], part.encode()), timeout=timeout, server=server
        )
        if method not in ("ModelMetadata", "ModelConfig", "ModelStatistics"):
            return answer
        message = getattr(service_pb2, f"{method}Response").FromString(answer)
        name_as_asked(message, name)
        return bytes(message.SerializeToString())

    def _of(self, name: str) -> ModelVersions | None:
        names = self._names.of_part(name)
        return None if names is None else self._models[self._names.base_of(names).served.name]

    def _unknown(self, request: bytes, admitted: Admission | None) -> DispatchError:
        """The error for a request for an unknown model: NOT_FOUND, unless the request itself is wrong."""
        try:
            read(request)
        except DispatchError as error:
            return self._refusal(error.code, error.message, admitted)
        return self._refusal(grpc.StatusCode.NOT_FOUND, UNKNOWN, admitted)

    def _refusal(self, code: grpc.StatusCode, message: str, admitted: Admission | None) -> DispatchError:
        if admitted is None:
            self.refused(code)
        return DispatchError(code, message)


def _name(message: bytes, number: int) -> str:
    """The text of a message's field; empty if it has none, or if the bytes are no message."""
    try:
        found = ""
        for at_number, kind, _, at, end in Fields(message).within(0, len(message)):
            if at_number == number and kind == BYTES:
                found = message[at:end].decode()
        return found
    except (WrongMessage, ValueError):
        return ""
