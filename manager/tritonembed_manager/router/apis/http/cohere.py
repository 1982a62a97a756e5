"""Cohere's API for vectors: /v1/embed and /v2/embed.

One pass of the model gives all types of vectors that a request asks for: the servers send float32, and the other types
are made of it here, with the servers' formulas.
"""

import json
import uuid
from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
from aiohttp import web

from tritonembed.request import Options
from tritonembed_engine.parameters import EmbedParameters
from tritonembed_engine.vectors import encode, normalized
from tritonembed_manager.router.apis.http.bodies import parse_object
from tritonembed_manager.router.apis.http.converter import Converted
from tritonembed_manager.router.apis.http.errors import BadRequest
from tritonembed_manager.router.apis.http.vector_calls import VectorCalls, Vectors, as_json
from tritonembed_manager.router.apis.http.vector_requests import (
    VectorsRequest,
    check_dimensions,
    check_fields,
    converted,
    read_input,
    read_list,
    read_model,
)
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_protocol.types import OUTPUT_TYPES, EmbeddingType


def cohere_form(error: BadRequest) -> tuple[int, dict[str, Any]]:
    """An error's status and body in Cohere's form."""
    return error.status, {"message": error.message}


class Cohere:
    """The routes of Cohere's API."""

    errors = staticmethod(cohere_form)

    def __init__(self, calls: VectorCalls) -> None:
        self._calls = calls

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/v1/embed", self.embed_v1), web.post("/v2/embed", self.embed_v2)]

    async def embed_v1(self, request: web.Request) -> web.StreamResponse:
        """The vectors of `texts`, as numbers or in several types at once."""
        return await self._embed(request, 1)

    async def embed_v2(self, request: web.Request) -> web.StreamResponse:
        """The vectors of `texts` or `inputs`, in several types at once."""
        return await self._embed(request, 2)

    async def _embed(self, request: web.Request, version: int) -> web.StreamResponse:
        async with self._calls.embed(request, "cohere", "texts", version=version) as vectors:
            if vectors.info["embedding_types"] != [BASE64]:
                vectors.check_finite("base64")
            return await vectors.answer(request, _write(vectors, version))


async def _write(vectors: Vectors, version: int) -> AsyncIterator[bytes]:
    kinds = vectors.info["embedding_types"]
    kind = "embeddings_floats" if kinds is None else "embeddings_by_type"
    head = json.dumps({"id": str(uuid.uuid4()), "response_type": kind}).encode()
    yield head[:-1] + b',"embeddings":' + (b"" if kinds is None else b"{")
    for number, name in enumerate(kinds or ["float"]):
        start = b"[" if kinds is None else b'%b"%b":[' % (b"," if number else b"", name.encode())
        async for rows in vectors.parts():
            yield start + b",".join(_in_type(rows, name))
            start = b","
        yield b"]"
    yield b"" if kinds is None else b"}"
    start = b',"texts":['
    async for texts in vectors.texts():
        yield start + b",".join(texts)
        start = b","
    units = {"input_tokens": vectors.tokens}
    meta = {"api_version": {"version": str(version)}, "billed_units": units, "tokens": units}
    yield b'],"meta":' + json.dumps(meta).encode() + b"}"


def _in_type(rows: npt.NDArray[np.float32], kind: str) -> list[bytes]:
    if kind == BASE64:
        return [b'"' + b64encode(row.tobytes()) + b'"' for row in rows]
    if OUTPUT_TYPES[kind].unit_length:
        rows = normalized(rows)
    parameters = EmbedParameters(embedding_type=kind)
    return as_json(encode(rows, parameters))


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
"""From Cohere's names to the servers'. The last two use the model's default prompt."""
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
    check_fields(body, fields)
    model = read_model(body, names)
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
        return read_input([_read_content(element) for element in read_list(inputs, "inputs")], "inputs")[0]
    texts = read_list(texts, "texts")
    if not all(isinstance(text, str) for text in texts):
        raise BadRequest("texts must be a list of strings", "texts")
    return read_input(texts, "texts")[0]


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
    for kind in read_list(given, "embedding_types"):
        if kind not in EMBEDDING_TYPES:
            raise BadRequest(f"embedding_types: must be of {', '.join(EMBEDDING_TYPES)}", "embedding_types")
    return list(dict.fromkeys(given))


def convert(body: bytes, names: dict[str, Any], version: int) -> Converted:
    """info: embedding_types; see `converted`."""
    asked = read_request(parse_object(body), ServedNames.from_json(names), version)
    return converted(asked, embedding_types=asked.embedding_types)
