"""The trace and log settings of Triton, between JSON and the gRPC messages."""

from typing import Any

from tritonclient.grpc import service_pb2

from tritonembed_manager.serve.http.errors import BadRequest

_LISTS = ("trace_level",)


def trace_request(model: str, settings: dict[str, Any]) -> bytes:
    """settings: what to change, each a value, a list of them, or null for the default. Raises BadRequest."""
    request = service_pb2.TraceSettingRequest(model_name=model)
    for name, value in settings.items():
        values = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(one, str | int) for one in values):
            raise BadRequest("a trace setting must be a string, a number, a list of strings, or null")
        # Without a value: back to the default.
        request.settings[name].value.extend(map(str, values))
    return bytes(request.SerializeToString())


def trace_answer(encoded: bytes) -> dict[str, Any]:
    """The settings as they are now."""
    settings = service_pb2.TraceSettingResponse.FromString(encoded).settings
    return {
        name: list(found.value) if name in _LISTS or len(found.value) != 1 else found.value[0]
        for name, found in settings.items()
    }


def log_request(settings: dict[str, Any]) -> bytes:
    """settings: what to change. Raises BadRequest."""
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
    """The settings as they are now."""
    settings = service_pb2.LogSettingsResponse.FromString(encoded).settings
    return {name: getattr(found, found.WhichOneof("parameter_choice")) for name, found in settings.items()}
