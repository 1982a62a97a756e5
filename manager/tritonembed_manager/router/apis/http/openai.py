"""OpenAI's API: /v1/embeddings and /v1/models."""

import json
import re
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import numpy.typing as npt
from aiohttp import web

from tritonembed.request import Options
from tritonembed_manager.router.apis.http.bodies import parse_object
from tritonembed_manager.router.apis.http.converter import Converted
from tritonembed_manager.router.apis.http.errors import BadRequest, openai_form
from tritonembed_manager.router.apis.http.vector_calls import VectorCalls, Vectors, as_json
from tritonembed_manager.router.apis.http.vector_requests import (
    DEPLOYMENTS,
    NO_SUCH_MODEL,
    VectorsRequest,
    check_fields,
    check_prompt,
    converted,
    model_pattern,
    read_input,
    read_model,
    read_text,
)
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.data.tenants import current_tenant
from tritonembed_manager.router.interfaces import DispatchError, ServerView
from tritonembed_protocol.limits import MAX_INT64
from tritonembed_protocol.space import SPACE
from tritonembed_protocol.types import DEFAULT_OUTPUT_TYPE, OUTPUT_TYPES


class OpenAI:
    """The routes of OpenAI's API. names: of the models."""

    errors = staticmethod(openai_form)

    def __init__(self, calls: VectorCalls, names: ServedNames, servers: Callable[[], list[ServerView]] = list) -> None:
        """servers: the dispatcher's, which report a model's dimensions and length."""
        self._servers = servers
        self._calls = calls
        self._names = names
        self._created = int(time.time())

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/embeddings", self.embeddings),
            # For clients whose base URL lacks /v1.
            web.post("/embeddings", self.embeddings),
            # Azure's route; its deployment is the model.
            web.post(f"{DEPLOYMENTS}/{model_pattern(self._names)}/embeddings", self.embeddings),
            web.post("/openai/v1/embeddings", self.embeddings),
            web.get("/openai/models", self.models),
            web.get("/v1/models", self.models),
            web.get("/models", self.models),
            web.get("/v1/models/{model:.+}", self.one_model),
        ]

    async def embeddings(self, request: web.Request) -> web.StreamResponse:
        """The vectors of `input`, as lists of numbers or as base64 of their little-endian bytes."""
        try:
            by_path = "model" in request.match_info
            async with self._calls.embed(request, "openai", "input", by_path=by_path) as vectors:
                return await vectors.answer(request, self._write(vectors))
        except DispatchError as error:
            if error.code is grpc.StatusCode.INVALID_ARGUMENT:
                bad = BadRequest(error.message, field_at_fault(error.message))
                bad.is_counted = True
                raise bad from None
            raise

    async def models(self, _request: web.Request) -> web.Response:
        """The models, each under all of its ids."""
        mine = [each for each in self._names.models if _may_use(each)]
        return web.json_response(
            {"object": "list", "data": [self._describe(each, id) for each in mine for id in each.ids]}
        )

    async def one_model(self, request: web.Request) -> web.Response:
        """A model, by one of its names."""
        # A name may contain slashes; a trailing slash is not part of it.
        name = request.match_info["model"].rstrip("/")
        found = self._names.find(name)
        if found is None or not _may_use(found):
            raise BadRequest(NO_SUCH_MODEL, "model", 404, "model_not_found")
        return web.json_response(self._describe(found, name if name in found.ids else found.model))

    def _describe(self, names: ServedNames, id: str) -> dict[str, Any]:
        """OpenAI's fields, vLLM's `max_model_len` and `parent` (an adapter's base model), and our own `task` and
        `dimensions`; null if they are not known."""
        base = self._names.base_of(names)
        views = [view for view in self._servers() if view.ensemble == base.served.name]
        return {
            "id": id,
            "object": "model",
            "created": self._created,
            "owned_by": "tritonembed",
            "parent": base.model if names.served.base else None,
            "task": names.served.task,
            "max_model_len": next((view.max_length for view in views if view.max_length), None),
            "dimensions": next((view.dimensions for view in views if view.dimensions), None),
        }

    async def _write(self, vectors: Vectors) -> AsyncIterator[bytes]:
        as_base64 = vectors.info["as_base64"]
        if not as_base64:
            vectors.check_finite("base64")
        index = 0
        yield b'{"object":"list","data":['
        async for rows in vectors.parts():
            if index:
                yield b","
            numbers = range(index, index + len(rows))
            yield b",".join(map(_item, numbers, _texts(rows, as_base64=as_base64)))
            index += len(rows)
        end = {
            "model": vectors.model,
            "usage": {"prompt_tokens": vectors.tokens, "total_tokens": vectors.tokens},
        }
        yield b"]," + json.dumps(end).encode()[1:]


def _item(index: int, vector: bytes) -> bytes:
    return b'{"object":"embedding","index":%d,"embedding":%b}' % (index, vector)


def _may_use(names: ServedNames) -> bool:
    """Whether the current tenant may use a model; True without a tenant."""
    tenant = current_tenant()
    return tenant is None or tenant.may_use(names.served.name)


def _texts(rows: npt.NDArray[Any], *, as_base64: bool) -> list[bytes]:
    if as_base64:
        return [b'"' + b64encode(row.tobytes()) + b'"' for row in rows]
    return as_json(rows)


_OPENAI_FIELDS = ("input", "model", "encoding_format", "dimensions", "user", "modality")
"""`modality` is Infinity's and NIM's."""
_PROMPT_FIELDS = ("prompt_name", "prompt", "instruction")
"""sentence-transformers' names; Text Embeddings Inference also has `prompt_name`. `instruction` is our own."""
_TEXT_FIELDS = ("input_type", "truncate", "embedding_type", *_PROMPT_FIELDS)
"""NVIDIA NIM's names for the first three."""
_INPUT_TYPES = {"document": "passage", "search_document": "passage", "search_query": "query"}
"""Names of other APIs for the servers' two types."""
_CHUNK_FIELDS = {"chunk_tokens": 1, "chunk_overlap": 0}
"""Our numeric fields, and the least value of each."""
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
    check_fields(body, _FIELDS)
    model = read_model(body, names)
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
        read_text(body, name)
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


def convert(body: bytes, names: dict[str, Any], by_path: bool = False) -> Converted:
    """info: as_base64, and the options that decide how answers are read; see `converted`.

    by_path: whether the path names the model, and not the body.
    """
    fields = parse_object(body)
    if by_path:
        fields.pop("model", None)
    asked = read_request(fields, ServedNames.from_json(names))
    options = {"embedding_type": asked.options["embedding_type"]}
    return converted(asked, as_base64=asked.as_base64, options=options)
