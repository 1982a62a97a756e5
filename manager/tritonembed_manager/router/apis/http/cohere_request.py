"""Reads and checks the bodies of requests to Cohere's /v1/embed and /v2/embed."""

from dataclasses import dataclass
from typing import Any, get_args

from tritonembed.request import Options
from tritonembed_manager.router.apis.http.errors import BadRequest
from tritonembed_manager.router.apis.http.vector_requests import (
    VectorsRequest,
    check_dimensions,
    read_input,
    read_model,
    unknown_field,
)
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_protocol.types import EmbeddingType

_FIELDS = ("model", "texts", "images", "input_type", "embedding_types", "truncate")
_V2_FIELDS = (*_FIELDS, "inputs", "output_dimension", "max_tokens", "priority")
"""`priority` has no effect here."""
INPUT_TYPES = {
    "search_query": "query",
    "search_document": "passage",
    "query": "query",
    "document": "passage",
    "passage": "passage",
    "classification": None,
    "clustering": None,
}
"""Cohere's, and the servers' names for them. For the last two the model's default prompt is used."""
BASE64 = "base64"
EMBEDDING_TYPES = (*(kind for kind in get_args(EmbeddingType) if kind != "float16"), BASE64)
_TRUNCATE = ("NONE", "START", "END")


@dataclass(frozen=True)
class CohereRequest(VectorsRequest):
    """embedding_types: those of the answer; None if it has no types (v1 without `embedding_types`)."""

    embedding_types: list[str] | None


def read_request(body: dict[str, Any], names: ServedNames, version: int) -> CohereRequest:
    """version: of the API, 1 or 2. Raises BadRequest, which names the field."""
    fields = _V2_FIELDS if version > 1 else _FIELDS
    for name in body:
        if name not in fields:
            raise unknown_field(name, fields)
    model = read_model(body.get("model"), names)
    if body.get("images") is not None:
        raise BadRequest("images: this model embeds texts only", "images")
    if body.get("max_tokens") is not None:
        raise BadRequest("max_tokens: texts are cut at the model's maximum only", "max_tokens")
    return CohereRequest(_read_texts(body), False, _read_options(body, version), model, _read_types(body, version))


def _read_texts(body: dict[str, Any]) -> list[bytes]:
    texts, inputs = body.get("texts"), body.get("inputs")
    if (texts is None) is (inputs is None):
        raise BadRequest("texts must be given" if texts is None else "texts and inputs exclude each other", "texts")
    if inputs is not None:
        return read_input([_read_content(element) for element in _listed(inputs, "inputs")], "inputs")[0]
    texts = _listed(texts, "texts")
    if not all(isinstance(text, str) for text in texts):
        raise BadRequest("texts must be a list of strings", "texts")
    return read_input(texts, "texts")[0]


def _listed(given: Any, name: str) -> list[Any]:
    if not isinstance(given, list) or not given:
        raise BadRequest(f"{name} must be a list, and not empty", name)
    return given


def _read_content(element: Any) -> str:
    content = element.get("content") if isinstance(element, dict) else None
    if not isinstance(content, list) or len(content) != 1 or not isinstance(content[0], dict):
        raise BadRequest("inputs: content must be a list with one object of type text", "inputs")
    text = content[0].get("text")
    if content[0].get("type") != "text" or not isinstance(text, str):
        raise BadRequest("inputs: this model embeds texts only", "inputs")
    return text


def _read_options(body: dict[str, Any], version: int) -> Options:
    kind, truncate = body.get("input_type"), body.get("truncate")
    if kind is None and version > 1:
        raise BadRequest("input_type must be given", "input_type")
    if kind is not None and (not isinstance(kind, str) or kind not in INPUT_TYPES):
        raise BadRequest(f"input_type must be one of {', '.join(INPUT_TYPES)}", "input_type")
    if truncate is not None and truncate not in _TRUNCATE:
        raise BadRequest(f"truncate must be one of {', '.join(_TRUNCATE)}", "truncate")
    check_dimensions(body.get("output_dimension"), "output_dimension")
    input_type: Any = None if kind is None else INPUT_TYPES[kind]
    return Options(input_type=input_type, truncate=truncate, dimensions=body.get("output_dimension"))


def _read_types(body: dict[str, Any], version: int) -> list[str] | None:
    given = body.get("embedding_types")
    if given is None:
        return ["float"] if version > 1 else None
    for kind in _listed(given, "embedding_types"):
        if kind not in EMBEDDING_TYPES:
            raise BadRequest(f"embedding_types: must be of {', '.join(EMBEDDING_TYPES)}", "embedding_types")
    return list(dict.fromkeys(given))
