"""Reads and checks the body of a request to OpenAI's /v1/embeddings."""

import re
from dataclasses import dataclass
from typing import Any

from tritonembed.request import Options
from tritonembed_manager.router.apis.http.errors import BadRequest
from tritonembed_manager.router.apis.http.vector_requests import (
    VectorsRequest,
    check_prompt,
    read_input,
    read_model,
    unknown_field,
)
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_protocol.limits import MAX_INT64
from tritonembed_protocol.space import SPACE
from tritonembed_protocol.types import DEFAULT_OUTPUT_TYPE, OUTPUT_TYPES

_OPENAI_FIELDS = ("input", "model", "encoding_format", "dimensions", "user", "modality")
"""`modality` is Infinity's and NIM's."""
_PROMPT_FIELDS = ("prompt_name", "prompt", "instruction")
"""sentence-transformers' names; Text Embeddings Inference also has `prompt_name`. `instruction` is our own."""
_TEXT_FIELDS = ("input_type", "truncate", "embedding_type", *_PROMPT_FIELDS)
"""NVIDIA NIM's names for the first three."""
_INPUT_TYPES = {"document": "passage", "search_document": "passage", "search_query": "query"}
"""Names of other APIs for the servers' two types."""
_CHUNK_FIELDS = {"chunk_tokens": 1, "chunk_overlap": 0}
"""Our own numbers beside `truncate`, and the least of each."""
_FIELDS = (*_OPENAI_FIELDS, *_TEXT_FIELDS, *_CHUNK_FIELDS, "normalize", SPACE)

_FAULT = re.compile(r"(?:in ensemble '[^']*', )?(\w+): ")
"""How servers' errors begin: Triton's with the ensemble, the engine's with the tensor or the parameter."""
_TENSORS = {"text": "input", "token_ids": "input"}


@dataclass(frozen=True)
class EmbeddingsRequest(VectorsRequest):
    """as_base64: whether vectors are written as base64 instead of numbers."""

    as_base64: bool


def read_request(body: dict[str, Any], names: ServedNames) -> EmbeddingsRequest:
    """Check a body. Raises BadRequest, which names the field. names: of the models."""
    for name in body:
        if name not in _FIELDS:
            raise unknown_field(name, _FIELDS)
    model = read_model(body.get("model"), names)
    encoding = body.get("encoding_format")
    if encoding not in (None, "float", "base64"):
        raise BadRequest("encoding_format must be float or base64", "encoding_format")
    if body.get("modality") not in (None, "text"):
        raise BadRequest("modality must be text", "modality")
    elements, by_ids = read_input(body.get("input"), "input")
    options = _read_options(body)
    if by_ids:
        for name in (*_PROMPT_FIELDS, *_CHUNK_FIELDS):
            if body.get(name) is not None:
                raise BadRequest(f"{name} applies to texts, but input has token ids", name)
    return EmbeddingsRequest(elements, by_ids, options, model, encoding == "base64")


def field_at_fault(message: str) -> str | None:
    """The field of an OpenAI request that a server's INVALID_ARGUMENT is about, or None."""
    found = _FAULT.match(message)
    name = found and (_TENSORS.get(found[1]) or found[1])
    return name if name in _FIELDS else None


def _read_options(body: dict[str, Any]) -> Options:
    for name, least in {"dimensions": 1, **_CHUNK_FIELDS}.items():
        number = body.get(name)
        if number is not None and (type(number) is not int or not least <= number <= MAX_INT64):
            raise BadRequest(f"{name} must be a whole number of at least {least}", name)
    for name in (*_TEXT_FIELDS, SPACE):
        if not isinstance(body.get(name), str | None):
            raise BadRequest(f"{name} must be a string", name)
    kind = body.get("embedding_type")
    if kind is not None and kind not in OUTPUT_TYPES:
        raise BadRequest(f"embedding_type must be one of {', '.join(OUTPUT_TYPES)}", "embedding_type")
    for name in _PROMPT_FIELDS:
        check_prompt(name, body.get(name))
    chosen = [name for name in _PROMPT_FIELDS if body.get(name) is not None]
    if len(chosen) > 1:
        raise BadRequest(f"{chosen[0]} and {chosen[1]} exclude each other", chosen[0])
    normalize = body.get("normalize")
    if not isinstance(normalize, bool | None):
        raise BadRequest("normalize must be true or false", "normalize")
    input_type: Any = body.get("input_type")
    return Options(
        input_type=_INPUT_TYPES.get(input_type, input_type) if input_type else None,
        prompt_name=body.get("prompt_name"),
        prompt=body.get("prompt"),
        instruction=body.get("instruction"),
        truncate=body.get("truncate"),
        chunk_tokens=body.get("chunk_tokens"),
        chunk_overlap=body.get("chunk_overlap"),
        dimensions=body.get("dimensions"),
        embedding_type=kind or DEFAULT_OUTPUT_TYPE,
        normalize=normalize,
        embedding_space=body.get(SPACE),
    )
