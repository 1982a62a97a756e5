"""A raw binary request: a body that is the content of a model's one input, and nothing else."""

from math import prod
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2
from tritonclient.utils import triton_to_np_dtype

from tritonembed._wire import frame
from tritonembed_manager.serve.http.errors import BadRequest
from tritonembed_manager.serve.http.infer_request import InferRequest

_BF16_BYTES = 2


def read_raw(body: bytes, metadata: Any, version: str) -> InferRequest:
    """metadata: the model's ModelMetadataResponse. Outputs are binary. Raises BadRequest."""
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
        raise BadRequest(f"input {tensor.name}: its shape cannot be told from the size of a raw body")
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
