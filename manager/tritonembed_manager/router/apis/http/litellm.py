"""litellm's `triton/` provider: KServe's JSON with its own names, for an ensemble that this server does not have.

It sends one input `input_text` of shape [texts], and takes every output of the answer for vectors.
"""

from typing import Any

from tritonembed_manager.router.apis.http.errors import BadRequest
from tritonembed_manager.router.apis.http.vectors_as_numbers import DATATYPE, OUTPUT, PARAMETER

ROUTE = "/triton/embeddings"


def to_kserve(body: dict[str, Any]) -> dict[str, Any]:
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
