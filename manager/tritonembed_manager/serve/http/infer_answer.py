"""An answer's gRPC message as KServe's HTTP has it: JSON, and binary contents behind it."""

import json
from typing import Any

from aiohttp import web
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2

from tritonembed import ServerError
from tritonembed_manager.serve.http import tensor_json
from tritonembed_manager.serve.http.infer_request import InferRequest

HEADER_LENGTH = "Inference-Header-Content-Length"


def to_answer(request: InferRequest, encoded: bytes) -> web.Response:
    """encoded: a ModelInferResponse. Raises BadRequest for an output that JSON can't hold, and ServerError."""
    try:
        message = service_pb2.ModelInferResponse.FromString(encoded)
    except DecodeError:
        raise ServerError("the answer of the server is no ModelInferResponse") from None
    if len(message.raw_output_contents) != len(message.outputs):
        raise ServerError("the answer of the server lacks the raw content of an output")
    outputs = []
    parts = [b""]
    for output, content in zip(message.outputs, message.raw_output_contents, strict=True):
        tensor: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
        parameters = _parameters(output.parameters)
        if request.is_binary(output.name):
            parameters["binary_data_size"] = len(content)
            parts.append(content)
        else:
            tensor["data"] = tensor_json.to_json(output.name, output.datatype, content)
        outputs.append({**tensor, **({"parameters": parameters} if parameters else {})})
    header: dict[str, Any] = {"model_name": message.model_name, "model_version": message.model_version}
    if message.id:
        header["id"] = message.id
    if message.parameters:
        header["parameters"] = _parameters(message.parameters)
    parts[0] = json.dumps({**header, "outputs": outputs}, separators=(",", ":")).encode()
    if len(parts) == 1:
        return web.Response(body=parts[0], content_type="application/json")
    return web.Response(
        body=b"".join(parts),
        content_type="application/octet-stream",
        headers={HEADER_LENGTH: str(len(parts[0]))},
    )


def _parameters(found: Any) -> dict[str, Any]:
    return {
        name: getattr(value, value.WhichOneof("parameter_choice") or "string_param") for name, value in found.items()
    }
