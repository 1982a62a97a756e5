"""KServe's HTTP inference request as the gRPC message: JSON, and the tensors behind it in the binary extension."""

from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import service_pb2

from tritonembed_manager.serve.http import tensor_json
from tritonembed_manager.serve.http.bodies import parse_object
from tritonembed_manager.serve.http.errors import BadRequest
from tritonembed_manager.serve.http.fields import (
    read_bool,
    read_name,
    read_object,
    read_objects,
    read_tensor_parameters,
    write_parameters,
)

NEVER_TEXT = {("embedding", "embedding"), ("embedder", "embedding"), ("tokenizer", "token_ids")}
"""Outputs, by model, that JSON can't hold."""
_MAX_SIZE = 2**63


@dataclass(frozen=True)
class InferRequest:
    """message: a ModelInferRequest. binary: by output's name, whether its content is to follow the JSON of the answer;
    binary_by_default: the same for outputs that the request does not name."""

    message: Any
    binary: dict[str, bool]
    binary_by_default: bool

    def is_binary(self, output: str) -> bool:
        """How the output is to be sent."""
        return self.binary.get(output, self.binary_by_default)


def read_request(body: bytes, header_length: int | None, model: str, version: str) -> InferRequest:
    """header_length: of the JSON, None when all of the body is.

    Raises BadRequest, and UnicodeEncodeError where a string has no UTF-8 form.
    """
    end = len(body) if header_length is None else header_length
    if end > len(body):
        raise BadRequest("Inference-Header-Content-Length is more than the body has")
    request = _read(parse_object(body[:end]), memoryview(body)[end:], model, version)
    asked = [output.name for output in request.message.outputs]
    for of, output in NEVER_TEXT:
        if of == model and (not asked or output in asked) and not request.is_binary(output):
            raise tensor_json.no_text(output)
    return request


def _read(header: dict[str, Any], tensors: memoryview, model: str, version: str) -> InferRequest:
    message = service_pb2.ModelInferRequest(model_name=model, model_version=version, id=_read_id(header))
    parameters = dict(read_object(header.get("parameters"), "parameters"))
    by_default = read_bool(parameters.pop("binary_data_output", False), "binary_data_output")
    write_parameters(message.parameters, parameters)
    for tensor in read_objects(header.get("inputs"), "inputs"):
        tensors = _add_input(message, tensor, tensors)
    if tensors:
        raise BadRequest(f"{len(tensors)} bytes of the body belong to no input")
    binary = {}
    for output in read_objects(header.get("outputs", []), "outputs"):
        name = read_name(output, "an output")
        parameters = read_tensor_parameters(output, f"output {name}")
        binary[name] = read_bool(parameters.pop("binary_data", by_default), f"output {name}: binary_data")
        write_parameters(message.outputs.add(name=name).parameters, parameters)
    return InferRequest(message, binary, by_default)


def _add_input(message: Any, tensor: dict[str, Any], rest: memoryview) -> memoryview:
    name, datatype, shape = read_name(tensor, "an input"), tensor.get("datatype"), tensor.get("shape")
    if not isinstance(datatype, str):
        raise BadRequest(f"input {name}: it lacks its datatype")
    if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < _MAX_SIZE for size in shape):
        raise BadRequest(f"input {name}: shape must be a list of sizes")
    parameters = read_tensor_parameters(tensor, f"input {name}")
    size = parameters.pop("binary_data_size", None)
    if size is None:
        if "data" not in tensor:
            raise BadRequest(f"input {name}: it has neither data nor binary_data_size")
        content = tensor_json.from_json(name, datatype, shape, tensor["data"])
    elif type(size) is not int or not 0 <= size <= len(rest):
        raise BadRequest(f"input {name}: binary_data_size is not what the body has")
    else:
        content, rest = bytes(rest[:size]), rest[size:]
    added = message.inputs.add(name=name, datatype=datatype, shape=shape)
    write_parameters(added.parameters, parameters)
    message.raw_input_contents.append(content)
    return rest


def _read_id(header: dict[str, Any]) -> str:
    found = header.get("id", "")
    if type(found) is int:
        return str(found)
    if not isinstance(found, str):
        raise BadRequest("id must be a string")
    return found
