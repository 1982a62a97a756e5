"""Reads and checks the bodies of requests to the routes of text-embeddings-inference (TEI)."""

from dataclasses import dataclass
from typing import Any, Literal, cast

from tritonembed.request import Options
from tritonembed_manager.router.apis.http.errors import BadRequest
from tritonembed_manager.router.apis.http.vector_requests import (
    MAX_INPUTS,
    VectorsRequest,
    check_dimensions,
    check_prompt,
    read_input,
    unknown_field,
)
from tritonembed_protocol.served import ServedModel
from tritonembed_protocol.types import Output

_PARAMETERS = ("truncate", "truncation_direction", "prompt_name", "normalize", "dimensions", "encoding_format")
_FIELDS = ("inputs", *_PARAMETERS, "parameters", "options", "model")
"""`options` and `model` are the hub's, and have no effect here."""
_DIRECTIONS = {"right": "END", "left": "START"}
_PAIR = ("source_sentence", "sentences")


Task = Literal["embed", "embed_sparse", "embed_all", "similarity"]
_OUTPUTS: dict[Task, Output] = {"embed_sparse": "sparse", "embed_all": "multi_vector"}


@dataclass(frozen=True)
class TeiRequest(VectorsRequest):
    """task: of the answer. `similarity` compares the first text with the others."""

    task: Task


def read_request(body: dict[str, Any], task: Task | None, model: ServedModel) -> TeiRequest:
    """model: the only one that these routes have.

    task: None for `similarity` if `inputs` is an object, else `embed`. Raises BadRequest.
    """
    for name in body:
        if name not in _FIELDS:
            raise unknown_field(name, _FIELDS)
    inputs = body.get("inputs")
    task = task or ("similarity" if isinstance(inputs, dict) else "embed")
    elements, by_ids = (_read_pair(inputs), False) if task == "similarity" else _read_inputs(inputs)
    options = _read_options(_read_parameters(body))
    if task in _OUTPUTS:
        # Weights have no length, and the model's files say whether vectors of tokens have.
        given = {name: value for name, value in options.items() if name != "normalize" or "normalize" in body}
        options = cast("Options", {**given, "outputs": _OUTPUTS[task]})
    return TeiRequest(elements, by_ids, options, model, task)


def _read_inputs(inputs: Any) -> tuple[list[bytes], bool]:
    if isinstance(inputs, list) and len(inputs) > MAX_INPUTS:
        raise BadRequest(f"inputs has {len(inputs)} elements; at most {MAX_INPUTS} are allowed", "inputs", 413)
    return read_input(inputs, "inputs")


def _read_pair(inputs: Any) -> list[bytes]:
    if not isinstance(inputs, dict) or set(inputs) != set(_PAIR):
        raise BadRequest("inputs must be an object with source_sentence and sentences", "inputs")
    source, sentences = (inputs[name] for name in _PAIR)
    if not isinstance(source, str):
        raise BadRequest("inputs: source_sentence must be a string", "inputs")
    if not isinstance(sentences, list) or not sentences or not isinstance(sentences[0], str):
        raise BadRequest("inputs: sentences must be a list of strings, and not empty", "inputs")
    return _read_inputs([source, *sentences])[0]


def _read_parameters(body: dict[str, Any]) -> dict[str, Any]:
    """The parameters, which some clients send in an object of their own."""
    nested = body.get("parameters")
    if nested is None:
        nested = {}
    if not isinstance(nested, dict):
        raise BadRequest("parameters must be an object", "parameters")
    for name in nested:
        if name not in _PARAMETERS:
            raise unknown_field(name, _PARAMETERS)
    return {**{name: body[name] for name in _PARAMETERS if name in body}, **nested}


def _read_options(given: dict[str, Any]) -> Options:
    for name in ("truncate", "normalize"):
        if not isinstance(given.get(name), bool | None):
            raise BadRequest(f"{name} must be true or false", name)
    for name in ("truncation_direction", "prompt_name"):
        if not isinstance(given.get(name), str | None):
            raise BadRequest(f"{name} must be a string", name)
    if given.get("encoding_format") not in (None, "float"):
        raise BadRequest("encoding_format must be float; /v1/embeddings has base64", "encoding_format")
    check_dimensions(given.get("dimensions"), "dimensions")
    check_prompt("prompt_name", given.get("prompt_name"))
    normalize = given.get("normalize")
    return Options(
        truncate=_read_truncate(given.get("truncate"), given.get("truncation_direction")),
        prompt_name=given.get("prompt_name"),
        # TEI's default, whatever the model's files say.
        normalize=True if normalize is None else normalize,
        dimensions=given.get("dimensions"),
    )


def _read_truncate(truncate: bool | None, direction: str | None) -> Any:
    """`truncate` of a request to the servers; None is the model's default, which truncates."""
    if direction is not None and direction.lower() not in _DIRECTIONS:
        raise BadRequest("truncation_direction must be right or left", "truncation_direction")
    if truncate is False:
        return "NONE"
    if direction is None:
        return "END" if truncate else None
    return _DIRECTIONS[direction.lower()]
