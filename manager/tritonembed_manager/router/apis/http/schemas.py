"""The bodies of requests to the HTTP API as JSON schemas, for its OpenAPI page.

A test compares them with what the readers accept.
"""

from typing import Any

from tritonembed_manager.router.apis.http.cohere_request import EMBEDDING_TYPES as COHERE_TYPES
from tritonembed_manager.router.apis.http.cohere_request import INPUT_TYPES as COHERE_INPUT_TYPES
from tritonembed_protocol.types import INPUT_TYPES, OUTPUT_TYPES, TRUNCATE

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_TEXTS: Schema = {"type": "array", "items": _TEXT, "minItems": 1}
_IDS: Schema = {"type": "array", "items": {"type": "integer"}, "minItems": 1}
_INPUT: Schema = {"oneOf": [_TEXT, _TEXTS, _IDS, {"type": "array", "items": _IDS, "minItems": 1}]}
_BOOL: Schema = {"type": "boolean"}
_OBJECT: Schema = {"type": "object"}
_COUNT: Schema = {"type": "integer", "minimum": 1}


def _choice(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


def _object(required: list[str], **properties: Schema) -> Schema:
    return {"type": "object", "required": required, "properties": properties}


_OPENAI = _object(
    ["input"],
    input=_INPUT,
    model=_TEXT,
    encoding_format=_choice("float", "base64"),
    dimensions=_COUNT,
    user=_TEXT,
    modality=_choice("text"),
    input_type=_choice(*INPUT_TYPES, "document", "search_document", "search_query"),
    truncate=_choice(*TRUNCATE),
    embedding_type=_choice(*OUTPUT_TYPES),
    prompt_name=_TEXT,
    prompt=_TEXT,
    instruction=_TEXT,
    chunk_tokens=_COUNT,
    chunk_overlap={"type": "integer", "minimum": 0},
    normalize=_BOOL,
    embedding_space=_TEXT,
)
_TEI_PARAMETERS: dict[str, Schema] = {
    "truncate": _BOOL,
    "truncation_direction": _choice("right", "left"),
    "prompt_name": _TEXT,
    "normalize": _BOOL,
    "dimensions": _COUNT,
    "encoding_format": _choice("float"),
}
_TEI_MORE: dict[str, Schema] = {
    **_TEI_PARAMETERS,
    "parameters": {"type": "object", "properties": _TEI_PARAMETERS},
    "options": _OBJECT,
    "model": _TEXT,
}
_PAIR = _object(["source_sentence", "sentences"], source_sentence=_TEXT, sentences=_TEXTS)
_COHERE: dict[str, Schema] = {
    "model": _TEXT,
    "texts": _TEXTS,
    "images": {"type": "null"},
    "input_type": _choice(*COHERE_INPUT_TYPES),
    "embedding_types": {"type": "array", "items": _choice(*COHERE_TYPES), "minItems": 1},
    "truncate": _choice("NONE", "START", "END"),
}
_CONTENT = _object(["type", "text"], type=_choice("text"), text=_TEXT)
_COHERE_INPUT = _object(["content"], content={"type": "array", "items": _CONTENT, "minItems": 1, "maxItems": 1})
_TENSOR = _object(
    ["name", "datatype", "shape"],
    name=_TEXT,
    datatype=_TEXT,
    shape={"type": "array", "items": {"type": "integer"}},
    data={"type": "array"},
    parameters=_OBJECT,
)
_INFER = _object(
    ["inputs"],
    id=_TEXT,
    parameters=_OBJECT,
    inputs={"type": "array", "items": _TENSOR},
    outputs={"type": "array", "items": _object(["name"], name=_TEXT, parameters=_OBJECT)},
)
_NULL: Schema = {"type": "null"}
_DOCUMENTS: Schema = {"type": "array", "items": {"oneOf": [_TEXT, _object(["text"], text=_TEXT)]}, "minItems": 1}
_RERANK: dict[str, Schema] = {
    "model": _TEXT,
    "query": _TEXT,
    "documents": _DOCUMENTS,
    "top_n": _COUNT,
    "return_documents": _BOOL,
    "max_tokens_per_doc": _COUNT,
    "priority": {"type": "integer"},
}
_RERANK_V1 = _object(["query", "documents"], **_RERANK, max_chunks_per_doc=_NULL, rank_fields=_NULL)
_TEI_SCORES: dict[str, Schema] = {
    "model": _TEXT,
    "raw_scores": _BOOL,
    "truncate": _BOOL,
    "truncation_direction": _choice("right", "left"),
}
_ROWS: Schema = {"type": "array", "items": {**_TEXTS, "maxItems": 2}, "minItems": 1}
_SIDE: Schema = {"oneOf": [_TEXT, _TEXTS]}
_SCORE = _object(
    ["text_1", "text_2"],
    model=_TEXT,
    text_1=_SIDE,
    text_2=_SIDE,
    use_activation=_BOOL,
    priority={"type": "integer"},
    user=_TEXT,
    encoding_format=_TEXT,
)
BODIES: dict[str, Schema] = {
    "/v1/embeddings": _OPENAI,
    "/embeddings": _OPENAI,
    "/": _object(["inputs"], inputs={"oneOf": [*_INPUT["oneOf"], _PAIR]}, **_TEI_MORE),
    "/embed": _object(["inputs"], inputs=_INPUT, **_TEI_MORE),
    "/embed_sparse": _object(["inputs"], inputs=_INPUT, **_TEI_MORE),
    "/embed_all": _object(["inputs"], inputs=_INPUT, **_TEI_MORE),
    "/similarity": _object(["inputs"], inputs=_PAIR, **_TEI_MORE),
    "/tokenize": _object(["inputs"], inputs={"oneOf": [_TEXT, _TEXTS]}, add_special_tokens=_BOOL, prompt_name=_TEXT),
    "/decode": _object(
        ["ids"], ids={"oneOf": [_IDS, {"type": "array", "items": _IDS, "minItems": 1}]}, skip_special_tokens=_BOOL
    ),
    "/v1/embed": _object(["texts"], **_COHERE),
    "/v2/embed": _object(
        ["input_type"],
        **_COHERE,
        inputs={"type": "array", "items": _COHERE_INPUT, "minItems": 1},
        output_dimension=_COUNT,
        max_tokens={"type": "null"},
        priority={"type": "integer"},
    ),
    "/v1/rerank": _RERANK_V1,
    "/v2/rerank": _object(["query", "documents"], **_RERANK),
    # Either texts or documents, each with its own fields.
    "/rerank": _object(["query"], **{"texts": _TEXTS, "return_text": _BOOL, **_TEI_SCORES, **_RERANK}),
    "/predict": _object(["inputs"], inputs={"oneOf": [_TEXT, _TEXTS, _ROWS]}, **_TEI_SCORES),
    "/score": _SCORE,
    "/v1/score": _SCORE,
    "/v2/models/{model}/infer": _INFER,
    "/v2/models/{model}/versions/{version}/infer": _INFER,
    "/triton/embeddings": _INFER,
}
"""By route of a POST."""
