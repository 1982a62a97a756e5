"""KServe's vectors as numbers, for clients that know no bytes: made here, because the servers' vectors are BYTES.

A request asks with the parameter `as: "FP32"`, of the request or of its output `embedding`, or with an output
`embedding_fp32`. The answer's tensor is FP32 [texts, dimensions], in JSON or in binary.

litellm's `triton/` provider is such a client. It sends KServe's JSON with its own names, for an ensemble that this
server does not have: one input `input_text` of shape [texts]. It takes every output of the answer for vectors.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tritonembed import ServerError
from tritonembed_manager.router.apis.http.errors import BadRequest
from tritonembed_manager.router.apis.http.tensor_json import json_rows
from tritonembed_protocol.framing import FramingError, unframe_vectors
from tritonembed_protocol.types import DEFAULT_OUTPUT_TYPE

OUTPUT = "embedding"
AS_NUMBERS = f"{OUTPUT}_fp32"
"""The output that has no other form."""
PARAMETER = "as"
DATATYPE = "FP32"
_WITHOUT = ("tokenizer", "chunks")
"""Ends of the names of models without this output."""


@dataclass(frozen=True)
class Numbers:
    """names: of the outputs that are sent as numbers. also_bytes: whether `embedding` is sent as BYTES, too."""

    names: tuple[str, ...] = ()
    also_bytes: bool = True


NO_NUMBERS = Numbers()


def read_numbers(asked: dict[str, dict[str, Any]], parameters: dict[str, Any], model: str) -> Numbers:
    """What a request asks for. Takes the parameter `as` out of both.

    asked: the parameters of each output that the request names. parameters: of the request. Raises BadRequest.
    """
    by_default = _read_parameter(parameters, "parameters")
    names = []
    for name, own in asked.items():
        chosen = _read_parameter(own, f"output {name}")
        if chosen and name not in (OUTPUT, AS_NUMBERS):
            raise BadRequest(f"output {name}: {PARAMETER} is for the output {OUTPUT}")
        if name == AS_NUMBERS or (name == OUTPUT and (chosen or by_default)):
            names.append(name)
    if by_default and not asked:
        names.append(OUTPUT)
    if names and model.endswith(_WITHOUT):
        raise BadRequest(f"{PARAMETER}: this model has no output {OUTPUT}")
    if names and parameters.get("embedding_type", DEFAULT_OUTPUT_TYPE) != DEFAULT_OUTPUT_TYPE:
        raise BadRequest(f"{PARAMETER}: {DATATYPE} is for embedding_type {DEFAULT_OUTPUT_TYPE}")
    return Numbers(tuple(names), OUTPUT in asked and OUTPUT not in names)


def matrix(content: bytes, count: int) -> npt.NDArray[np.float32]:
    """The vectors of a BYTES tensor of `count` elements: float32 [count, dimensions]. Raises ServerError."""
    try:
        return unframe_vectors(content, count, np.dtype("<f4"))
    except (FramingError, ZeroDivisionError):
        raise ServerError(f"output {OUTPUT}: its bytes are not float32 vectors") from None


def as_flat_json(vectors: npt.NDArray[np.float32]) -> Iterator[bytes]:
    """The numbers of all rows, in order, as pieces of one JSON list. Raises ServerError for one that JSON lacks."""
    if not np.isfinite(vectors).all():
        raise ServerError(
            f"output {OUTPUT}: a number that is not finite cannot be written as JSON; ask for binary data"
        )
    for index, row in enumerate(json_rows(vectors)):
        yield (b"," if index else b"") + row[1:-1]


def _read_parameter(parameters: dict[str, Any], what: str) -> bool:
    given = parameters.pop(PARAMETER, None)
    if given not in (None, DATATYPE):
        raise BadRequest(f"{what}: {PARAMETER} must be {DATATYPE}")
    return given is not None


LITELLM_ROUTE = "/triton/embeddings"


def litellm_to_kserve(body: dict[str, Any]) -> dict[str, Any]:
    """The same request as KServe's for the ensemble, with vectors as numbers. Raises BadRequest."""
    inputs = body.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise BadRequest("inputs must be a list of one input, input_text")
    [given] = inputs
    data = given.get("data")
    if isinstance(data, str):
        # litellm passes a single text on as it is.
        data = [data]
    if given.get("datatype") != "BYTES" or not isinstance(data, list):
        raise BadRequest("input input_text: it must have the datatype BYTES and a list of texts as its data")
    tensor = {"name": "text", "datatype": "BYTES", "shape": [len(data), 1], "data": data}
    return {**body, "inputs": [tensor], "outputs": [{"name": OUTPUT, "parameters": {PARAMETER: DATATYPE}}]}
