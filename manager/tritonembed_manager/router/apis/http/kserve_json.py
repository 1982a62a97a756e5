"""KServe's HTTP messages: converts an inference request to the gRPC message, and gRPC answers to JSON.

The body of a request is JSON, or JSON with tensors after it (the binary extension). The body of a raw binary request is
the content of a model's one input, and nothing else.

As in Triton's HTTP API, an answer's fields have their own names and numbers stay numbers. protobuf's `MessageToDict`
would make strings of 64-bit numbers.
"""

import json
from collections.abc import MutableSequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from aiohttp import web
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2
from tritonclient.utils import triton_to_np_dtype

from tritonembed import ServerError
from tritonembed_manager.router.apis.http import tensor_json
from tritonembed_manager.router.apis.http.bodies import parse_object
from tritonembed_manager.router.apis.http.errors import BadRequest
from tritonembed_manager.router.apis.http.tensor_json import (
    AS_NUMBERS,
    DATATYPE,
    NO_NUMBERS,
    OUTPUT,
    Numbers,
    as_flat_json,
    litellm_to_kserve,
    matrix,
    read_numbers,
)
from tritonembed_manager.router.data.envelope import NO_SHARED_MEMORY
from tritonembed_protocol.framing import frame
from tritonembed_protocol.served import FIRST_MODEL, ServedModel

_INT64 = range(-(2**63), 2**63)


def read_object(found: Any, what: str) -> dict[str, Any]:
    """A JSON object; empty if it is absent. Raises BadRequest."""
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise BadRequest(f"{what} must be an object")
    return found


def _read_objects(found: Any, what: str) -> list[dict[str, Any]]:
    """A list of objects. Raises BadRequest."""
    if not isinstance(found, list) or not all(isinstance(element, dict) for element in found):
        raise BadRequest(f"{what} must be a list of objects")
    return found


def _read_name(found: dict[str, Any], what: str) -> str:
    """The `name` of an object. Raises BadRequest."""
    name = found.get("name")
    if not isinstance(name, str) or not name:
        raise BadRequest(f"{what} lacks its name")
    return name


def _read_bool(found: Any, what: str) -> bool:
    """A JSON boolean. Raises BadRequest."""
    if not isinstance(found, bool):
        raise BadRequest(f"{what} must be true or false")
    return found


def _read_tensor_parameters(tensor: dict[str, Any], what: str) -> dict[str, Any]:
    """A copy of the parameters of an input or output. Raises BadRequest if they ask for shared memory."""
    parameters = dict(read_object(tensor.get("parameters"), f"{what}: parameters"))
    if any(known.startswith("shared_memory_") for known in parameters):
        raise BadRequest(f"{what}: {NO_SHARED_MEMORY}", status=501)
    return parameters


def _write_parameters(to: Any, parameters: dict[str, Any]) -> None:
    """Write parameters into a map of InferParameter. Raises BadRequest."""
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
            raise BadRequest("a parameter must be a string, a number or a bool")


def _never_text(served: ServedModel) -> dict[str, tuple[str, ...]]:
    """The outputs that JSON can't hold, by Triton model."""
    if served.task == "score":
        return {served.tokenizer: ("token_ids",)}
    return {
        served.name: ("embedding",),
        served.chunks: ("chunk_embeddings", "chunk_spans"),
        served.embedder: ("embedding", "chunk_embeddings", "chunk_spans"),
        served.tokenizer: ("token_ids",),
    }


_MAX_SIZE = 2**63


@dataclass(frozen=True)
class InferRequest:
    """message: a ModelInferRequest. binary: by output name, whether its content follows the JSON of the answer.
    binary_by_default: the same for outputs that the request does not name. numbers: vectors to send as numbers."""

    message: Any
    binary: dict[str, bool]
    binary_by_default: bool
    numbers: Numbers = NO_NUMBERS

    def is_binary(self, output: str) -> bool:
        """Whether the content of the output follows the JSON."""
        return self.binary.get(output, self.binary_by_default)


def read_request(
    body: bytes,
    header_length: int | None,
    model: str,
    version: str,
    of_litellm: bool = False,
    served: ServedModel = FIRST_MODEL,
) -> InferRequest:
    """header_length: bytes of the JSON; None if the whole body is JSON. of_litellm: see litellm_to_kserve.

    served: the model.

    Raises BadRequest, and UnicodeEncodeError if a string has no UTF-8 form.
    """
    end = len(body) if header_length is None else header_length
    if end > len(body):
        raise BadRequest("Inference-Header-Content-Length is larger than the body")
    header = parse_object(body[:end])
    if of_litellm:
        header = litellm_to_kserve(header)
    request = _read(header, memoryview(body)[end:], model, version)
    asked = list(request.binary)
    for output in _never_text(served).get(model, ()):
        if output in request.numbers.names or (request.numbers.names and not asked):
            continue
        if (not asked or output in asked) and not request.is_binary(output):
            raise tensor_json.no_text(output)
    return request


def _read(header: dict[str, Any], tensors: memoryview, model: str, version: str) -> InferRequest:
    message = service_pb2.ModelInferRequest(model_name=model, model_version=version, id=_read_id(header))
    parameters = dict(read_object(header.get("parameters"), "parameters"))
    by_default = _read_bool(parameters.pop("binary_data_output", False), "binary_data_output")
    outputs = {}
    for output in _read_objects(header.get("outputs", []), "outputs"):
        name = _read_name(output, "an output")
        outputs[name] = _read_tensor_parameters(output, f"output {name}")
    numbers = read_numbers(outputs, parameters, model)
    _write_parameters(message.parameters, parameters)
    for tensor in _read_objects(header.get("inputs"), "inputs"):
        tensors = _add_input(message, tensor, tensors)
    if tensors:
        raise BadRequest(f"{len(tensors)} bytes of the body belong to no input")
    binary = {}
    for name, own in outputs.items():
        binary[name] = _read_bool(own.pop("binary_data", by_default), f"output {name}: binary_data")
        if name != AS_NUMBERS:
            _write_parameters(message.outputs.add(name=name).parameters, own)
    if AS_NUMBERS in outputs and OUTPUT not in outputs:
        message.outputs.add(name=OUTPUT)
    return InferRequest(message, binary, by_default, numbers)


def _add_input(message: Any, tensor: dict[str, Any], rest: memoryview) -> memoryview:
    name, datatype, shape = _read_name(tensor, "an input"), tensor.get("datatype"), tensor.get("shape")
    if not isinstance(datatype, str):
        raise BadRequest(f"input {name}: it lacks its datatype")
    if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < _MAX_SIZE for size in shape):
        raise BadRequest(f"input {name}: shape must be a list of sizes")
    parameters = _read_tensor_parameters(tensor, f"input {name}")
    size = parameters.pop("binary_data_size", None)
    if size is None:
        if "data" not in tensor:
            raise BadRequest(f"input {name}: it has neither data nor binary_data_size")
        content = tensor_json.from_json(name, datatype, shape, tensor["data"])
    elif type(size) is not int or not 0 <= size <= len(rest):
        raise BadRequest(f"input {name}: binary_data_size does not match the body")
    else:
        content, rest = bytes(rest[:size]), rest[size:]
    added = message.inputs.add(name=name, datatype=datatype, shape=shape)
    _write_parameters(added.parameters, parameters)
    message.raw_input_contents.append(content)
    return rest


def _read_id(header: dict[str, Any]) -> str:
    found = header.get("id", "")
    if type(found) is int:
        return str(found)
    if not isinstance(found, str):
        raise BadRequest("id must be a string")
    return found


_BF16_BYTES = 2


def read_raw(body: bytes, metadata: Any, version: str) -> InferRequest:
    """Read a raw binary request. metadata: the model's ModelMetadataResponse. Outputs are binary. Raises BadRequest."""
    if len(metadata.inputs) != 1:
        raise BadRequest("a raw body needs a model that has one input")
    [tensor] = metadata.inputs
    if tensor.datatype == "BYTES":
        shape, content = [1 if size < 0 else size for size in tensor.shape], frame([body])
        fits = prod(shape) == 1
    else:
        content = body
        shape, fits = _shape(list(tensor.shape), tensor.datatype, len(body))
    if not fits:
        raise BadRequest(f"input {tensor.name}: its shape does not follow from the size of a raw body")
    message = service_pb2.ModelInferRequest(
        model_name=metadata.name, model_version=version, raw_input_contents=[content]
    )
    message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=shape)
    return InferRequest(message, {}, True)


def _shape(sizes: list[int], datatype: str, length: int) -> tuple[list[int], bool]:
    dtype = triton_to_np_dtype(datatype)
    known = prod(size for size in sizes if size >= 0) * (_BF16_BYTES if dtype is None else np.dtype(dtype).itemsize)
    if not known or length % known or sizes.count(-1) > 1:
        return sizes, False
    count = length // known
    return [count if size < 0 else size for size in sizes], -1 in sizes or count == 1


HEADER_LENGTH = "Inference-Header-Content-Length"


def to_answer(request: InferRequest, encoded: bytes, alias: str = "") -> web.Response:
    """encoded: a ModelInferResponse. alias: the model's name to send, if it differs.

    Raises BadRequest for an output that JSON can't hold, and ServerError.
    """
    try:
        message = service_pb2.ModelInferResponse.FromString(encoded)
    except DecodeError:
        raise ServerError("the server's answer is not a ModelInferResponse") from None
    if len(message.raw_output_contents) != len(message.outputs):
        raise ServerError("the server's answer lacks the raw content of an output")
    outputs = list[bytes]()
    parts = [b""]
    for output, content in zip(message.outputs, message.raw_output_contents, strict=True):
        tensor: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
        parameters = _parameters(output.parameters)
        if output.name == OUTPUT and request.numbers.names:
            for name in request.numbers.names:
                outputs.append(_numbers(name, matrix(content, prod(output.shape)), request, parts))
            if not request.numbers.also_bytes:
                continue
        if request.is_binary(output.name):
            parameters["binary_data_size"] = len(content)
            parts.append(content)
        else:
            try:
                tensor["data"] = tensor_json.to_json(output.name, output.datatype, content)
            except BadRequest as error:
                error.is_counted = True
                raise
        outputs.append(_dumps({**tensor, **({"parameters": parameters} if parameters else {})}))
    header: dict[str, Any] = {"model_name": alias or message.model_name, "model_version": message.model_version}
    if message.id:
        header["id"] = message.id
    if message.parameters:
        header["parameters"] = _parameters(message.parameters)
    parts[0] = b'%b,"outputs":[%b]}' % (_dumps(header)[:-1], b",".join(outputs))
    if len(parts) == 1:
        return web.Response(body=parts[0], content_type="application/json")
    return web.Response(
        body=b"".join(parts),
        content_type="application/octet-stream",
        headers={HEADER_LENGTH: str(len(parts[0]))},
    )


def _numbers(name: str, vectors: Any, request: InferRequest, parts: list[bytes]) -> bytes:
    """An output with vectors as numbers: its JSON, or its JSON without content, which is added to `parts`."""
    tensor: dict[str, Any] = {"name": name, "datatype": DATATYPE, "shape": list(vectors.shape)}
    if not request.is_binary(name):
        return b'%b,"data":[%b]}' % (_dumps(tensor)[:-1], b"".join(as_flat_json(vectors)))
    content = vectors.tobytes()
    parts.append(content)
    return _dumps({**tensor, "parameters": {"binary_data_size": len(content)}})


def _dumps(found: dict[str, Any]) -> bytes:
    return json.dumps(found, separators=(",", ":")).encode()


def _parameters(found: Any) -> dict[str, Any]:
    return {
        name: getattr(value, value.WhichOneof("parameter_choice") or "string_param") for name, value in found.items()
    }


def to_json(message: Any, *, unset: bool = False) -> dict[str, Any]:
    """Every field, including fields with their default value. unset: also messages that are not set, with defaults."""
    return {
        field.name: _value(field, getattr(message, field.name), unset)
        for field in message.DESCRIPTOR.fields
        if unset or not field.has_presence or message.HasField(field.name)
    }


def _value(field: Any, value: Any, unset: bool) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        of = field.message_type.fields_by_name["value"]
        return {str(key): _one(of, element, unset) for key, element in sorted(value.items())}
    if isinstance(value, MutableSequence):
        return [_one(field, element, unset) for element in value]
    return _one(field, value, unset)


def _one(field: Any, value: Any, unset: bool) -> Any:
    if field.message_type is not None:
        return to_json(value, unset=unset)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return value if known is None else known.name
    return value.decode("latin-1") if isinstance(value, bytes) else value
