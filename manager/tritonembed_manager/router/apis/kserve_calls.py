"""KServe's calls other than ModelInfer, for gRPC and HTTP: checks their messages, and sends calls to every server.

Calls that change servers are refused unless the manager was started with --admin. The answers of all servers to
ModelStatistics are added up.
"""

import asyncio
from collections.abc import Collection, Iterable
from typing import Any

import grpc
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2

from tritonembed_manager.router.data.model_names import ServedNames, check_name, name_as_asked
from tritonembed_manager.router.data.tenants import NO_ADMIN, check_model, current_tenant
from tritonembed_manager.router.interfaces import Dispatcher, DispatchError

_NAME_OF = {
    "ModelReady": "name",
    "ModelMetadata": "name",
    "ModelConfig": "name",
    "ModelStatistics": "name",
    "RepositoryModelLoad": "model_name",
    "RepositoryModelUnload": "model_name",
    "TraceSetting": "model_name",
}
"""The field with the model's name, by method."""
_OF_ALL = ("ModelStatistics", "TraceSetting")
"""Without a name, these calls are about every model."""
_MAX_SIZE = 1 << 20
"""Bytes. The messages are decoded on the event loop, and none of them needs to be large."""


def read_message(method: str, encoded: bytes, names: ServedNames) -> tuple[Any, str]:
    """The message with its model's name as servers know it, and the name in the request if it differs.

    names: of the models. Raises DispatchError (INVALID_ARGUMENT, PERMISSION_DENIED).
    """
    request = getattr(service_pb2, f"{method}Request")
    if len(encoded) > _MAX_SIZE:
        raise _wrong(f"a {method}Request has at most {_MAX_SIZE} bytes")
    try:
        message = request.FromString(encoded)
    except DecodeError:
        raise _wrong(f"these bytes are not a valid {method}Request, or a string in it is not UTF-8") from None
    if method not in _NAME_OF:
        return message, ""
    asked = getattr(message, _NAME_OF[method])
    name = names.to_model(asked)
    if name or method not in _OF_ALL:
        check_name(name, getattr(message, "version", ""))
        check_model(name)
    if name == asked:
        return message, ""
    setattr(message, _NAME_OF[method], name)
    return message, asked


def name_of(method: str, message: Any) -> str:
    """The model's name in a message of `read_message`; empty if it has none."""
    return str(getattr(message, _NAME_OF[method])) if method in _NAME_OF else ""


def answer_as_asked(method: str, encoded: bytes, alias: str) -> bytes:
    """The answer to such a message, with the model's name as in the request. alias: that name, if it differs."""
    if not alias:
        return encoded
    answer = getattr(service_pb2, f"{method}Response").FromString(encoded)
    name_as_asked(answer, alias)
    return bytes(answer.SerializeToString())


def _wrong(reason: str) -> DispatchError:
    return DispatchError(grpc.StatusCode.INVALID_ARGUMENT, reason)


OFF = "this call changes servers, which is off here; `tritonembed-manager serve --admin` allows it"
NO_FILES = (
    "a load may not contain files or a configuration, because servers would run the sender's code. Put them into the "
    "model repository of each server, then load the model by its name"
)


def check_admin(allowed: bool) -> None:
    """allowed: the value of --admin; a tenant has its own. Raises DispatchError (PERMISSION_DENIED)."""
    tenant = current_tenant()
    if tenant is not None and not tenant.admin:
        raise DispatchError(grpc.StatusCode.PERMISSION_DENIED, NO_ADMIN)
    if tenant is None and not allowed:
        raise DispatchError(grpc.StatusCode.PERMISSION_DENIED, OFF)


def check_load(parameters: Collection[str]) -> None:
    """parameters: their names. Raises DispatchError (PERMISSION_DENIED) for any parameter: it can bring code."""
    if parameters:
        raise DispatchError(grpc.StatusCode.PERMISSION_DENIED, NO_FILES)


_UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


async def call_all(
    dispatcher: Dispatcher,
    method: str,
    message: bytes,
    *,
    timeout: float | None,
    or_unavailable: bool = False,
    model: str = "",
) -> list[bytes]:
    """The answers of all servers that receive requests, at least one. Raises the first DispatchError.

    model: only those with this model, by Triton's name; empty for all.

    or_unavailable: some servers may be unavailable, but not all.
    """
    calls = [
        dispatcher.call(method, message, timeout=timeout, server=server) for server in dispatcher.serving(model)
    ] or [dispatcher.call(method, message, timeout=timeout)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    good = [answer for answer in answers if isinstance(answer, bytes)]
    for answer in answers:
        if good and or_unavailable and isinstance(answer, DispatchError) and answer.code is _UNAVAILABLE:
            continue
        if isinstance(answer, BaseException):
            raise answer
    return good


_LATEST = "last_inference"
"""A time, not a count: the latest is kept."""
_KEYS = {"model_stats": ("name", "version"), "batch_stats": ("batch_size",), "memory_usage": ("type", "id")}
"""The fields that identify an element of a list."""


def add_up_statistics(answers: Iterable[bytes]) -> bytes:
    """Combine encoded ModelStatisticsResponses into one."""
    total = service_pb2.ModelStatisticsResponse()
    for answer in answers:
        _add(total, service_pb2.ModelStatisticsResponse.FromString(answer))
    encoded: bytes = total.SerializeToString()
    return encoded


def _add(total: Any, more: Any, keep: tuple[str, ...] = ()) -> None:
    for descriptor, value in more.ListFields():
        name = descriptor.name
        if name in keep or isinstance(value, str):
            setattr(total, name, value)
        elif name in _KEYS:
            _add_list(getattr(total, name), value, _KEYS[name])
        elif isinstance(value, int):
            ours = getattr(total, name)
            setattr(total, name, max(ours, value) if name == _LATEST else ours + value)
        elif hasattr(value, "items"):
            for key, element in value.items():
                _add(getattr(total, name)[key], element)
        else:
            _add(getattr(total, name), value)


def _add_list(total: Any, more: Any, keys: tuple[str, ...]) -> None:
    known = {tuple(getattr(element, key) for key in keys): element for element in total}
    for element in more:
        same = known.get(tuple(getattr(element, key) for key in keys))
        _add(total.add() if same is None else same, element, keys)
