"""Fields of KServe's JSON, checked."""

from typing import Any

from tritonembed_manager.serve.http.errors import BadRequest

_INT64 = range(-(2**63), 2**63)
NO_SHARED_MEMORY = (
    "shared memory belongs to one server, and this endpoint stands before many: send the tensors in the request, or "
    "connect to a Triton server itself"
)


def read_object(found: Any, what: str) -> dict[str, Any]:
    """A JSON object; an empty one where there is none."""
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise BadRequest(f"{what} must be an object")
    return found


def read_objects(found: Any, what: str) -> list[dict[str, Any]]:
    """A list of objects."""
    if not isinstance(found, list) or not all(isinstance(element, dict) for element in found):
        raise BadRequest(f"{what} must be a list of objects")
    return found


def read_name(found: dict[str, Any], what: str) -> str:
    """The `name` of an object."""
    name = found.get("name")
    if not isinstance(name, str) or not name:
        raise BadRequest(f"{what} lacks its name")
    return name


def read_bool(found: Any, what: str) -> bool:
    """true or false."""
    if not isinstance(found, bool):
        raise BadRequest(f"{what} must be true or false")
    return found


def read_tensor_parameters(tensor: dict[str, Any], what: str) -> dict[str, Any]:
    """A copy of the parameters of an input or output. Raises BadRequest where they ask for shared memory."""
    parameters = dict(read_object(tensor.get("parameters"), f"{what}: parameters"))
    if any(known.startswith("shared_memory_") for known in parameters):
        raise BadRequest(f"{what}: {NO_SHARED_MEMORY}", status=501)
    return parameters


def write_parameters(to: Any, parameters: dict[str, Any]) -> None:
    """Into a map of InferParameter."""
    for name, value in parameters.items():
        if isinstance(value, bool):
            to[name].bool_param = value
        elif isinstance(value, int) and value in _INT64:
            to[name].int64_param = value
        elif isinstance(value, float):
            to[name].double_param = value
        elif isinstance(value, str):
            to[name].string_param = value
        else:
            raise BadRequest("a parameter is none of string, number and bool")
