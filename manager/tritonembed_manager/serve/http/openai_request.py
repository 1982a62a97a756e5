"""The body of a request to OpenAI's /v1/embeddings, checked."""

import re
from dataclasses import dataclass
from typing import Any

from tritonembed import InvalidArgumentError
from tritonembed._options import MAX_INT64, Options
from tritonembed._wire import encode_texts, encode_token_ids
from tritonembed_manager.serve.http.errors import BadRequest

MAX_INPUTS = 32 * 1024
MODEL_NAMES = ("embedding",)
"""Names a request may have beside what --model said."""
MAX_PROMPT = 64 * 1024
"""Bytes of a prompt in UTF-8. Every request that a call becomes carries it, and a server puts it before every text."""
_OPENAI_FIELDS = ("input", "model", "encoding_format", "dimensions", "user")
_PROMPT_FIELDS = ("prompt_name", "prompt")
"""Named as sentence-transformers names them; `prompt_name` is also the name in Text Embeddings Inference."""
_TEXT_FIELDS = ("input_type", "truncate", *_PROMPT_FIELDS)
"""`input_type` and `truncate` are named as NVIDIA's NIM names them."""
_FIELDS = (*_OPENAI_FIELDS, *_TEXT_FIELDS, "normalize")

_FAULT = re.compile(r"(?:in ensemble '[^']*', )?(\w+): ")
"""How servers begin: Triton with the ensemble, the engine with the tensor or the parameter."""
_TENSORS = {"text": "input", "token_ids": "input"}


@dataclass(frozen=True)
class EmbeddingsRequest:
    """elements: texts in UTF-8, or (by_ids) token ids as little-endian int32."""

    elements: list[bytes]
    by_ids: bool
    as_base64: bool
    options: Options


def read_request(body: dict[str, Any], model: str) -> EmbeddingsRequest:
    """Raises BadRequest, which names the field. model: what --model said."""
    for name in body:
        if name not in _FIELDS:
            known = ", ".join(_FIELDS)
            raise BadRequest(f"there is a field that is none of {known}", code="unknown_parameter")
    _check_model(body.get("model"), model)
    encoding = body.get("encoding_format")
    if encoding not in (None, "float", "base64"):
        raise BadRequest("encoding_format must be float or base64", "encoding_format")
    elements, by_ids = _read_input(body.get("input"))
    options = _read_options(body)
    if by_ids:
        for name in _PROMPT_FIELDS:
            if body.get(name) is not None:
                raise BadRequest(f"{name} goes before texts, and input has token ids", name)
    return EmbeddingsRequest(elements, by_ids, encoding == "base64", options)


def field_at_fault(message: str) -> str | None:
    """The field of an OpenAI request that a server's INVALID_ARGUMENT is about, or None."""
    found = _FAULT.match(message)
    name = found and (_TENSORS.get(found[1]) or found[1])
    return name if name in _FIELDS else None


def _check_model(asked: Any, model: str) -> None:
    if asked is not None and not isinstance(asked, str):
        raise BadRequest("model must be a string", "model")
    if asked and asked != model and asked not in MODEL_NAMES:
        raise BadRequest(
            "model: this server has no such model; GET /v1/models names it", "model", 404, "model_not_found"
        )


def _read_input(given: Any) -> tuple[list[bytes], bool]:
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, list) or not given:
        raise BadRequest(
            "input must be a string, a list of strings, a list of token ids, or a list of such lists, and not empty",
            "input",
        )
    first = given[0]
    by_ids = not isinstance(first, str)
    if by_ids and not isinstance(first, list):
        given = [given]
    if len(given) > MAX_INPUTS:
        raise BadRequest(f"input has {len(given)} elements: {MAX_INPUTS} are allowed", "input")
    try:
        return (encode_token_ids(given) if by_ids else encode_texts(given)), by_ids
    except (InvalidArgumentError, TypeError) as error:
        raise BadRequest(f"input: {error}", "input") from None


def _read_options(body: dict[str, Any]) -> Options:
    dimensions = body.get("dimensions")
    if dimensions is not None and (type(dimensions) is not int or not 1 <= dimensions <= MAX_INT64):
        raise BadRequest("dimensions must be a whole number from 1 on", "dimensions")
    for name in _TEXT_FIELDS:
        if not isinstance(body.get(name), str | None):
            raise BadRequest(f"{name} must be a string", name)
    for name in _PROMPT_FIELDS:
        _check_prompt(name, body.get(name))
    if body.get("prompt_name") is not None and body.get("prompt") is not None:
        raise BadRequest("prompt_name and prompt exclude each other", "prompt_name")
    normalize = body.get("normalize")
    if not isinstance(normalize, bool | None):
        raise BadRequest("normalize must be true or false", "normalize")
    return Options(
        input_type=body.get("input_type"),
        prompt_name=body.get("prompt_name"),
        prompt=body.get("prompt"),
        truncate=body.get("truncate"),
        dimensions=dimensions,
        normalize=normalize,
    )


def _check_prompt(name: str, prompt: str | None) -> None:
    # A lone surrogate raises UnicodeEncodeError, which errors.py answers for all strings.
    size = len(prompt.encode()) if prompt else 0
    if size > MAX_PROMPT:
        raise BadRequest(f"{name} has {size} bytes: {MAX_PROMPT} are allowed", name)
