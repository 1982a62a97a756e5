"""The routes of text-embeddings-inference (TEI), which Hugging Face's, LangChain's and LlamaIndex's clients speak.

Errors have TEI's form and its statuses: 413 for a text that is too long or too many texts, 422 for other bad input,
424 if the servers failed, 429 for overload.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal, cast

import grpc
import numpy as np
from aiohttp import web

from tritonembed import InvalidArgumentError
from tritonembed.inputs import encode_token_ids
from tritonembed.request import Options
from tritonembed_engine.tokenizing.inspection import DECODED, TOKENS
from tritonembed_manager.router.apis.http.bodies import parse_object
from tritonembed_manager.router.apis.http.converter import Converted
from tritonembed_manager.router.apis.http.errors import BadRequest
from tritonembed_manager.router.apis.http.vector_calls import VectorCalls, Vectors, as_json
from tritonembed_manager.router.apis.http.vector_requests import (
    MAX_INPUTS,
    PreparedMessage,
    VectorsRequest,
    behind_models,
    check_dimensions,
    check_fields,
    check_prompt,
    converted,
    embedding,
    of_path,
    prepare_for_tokenizer,
    read_flag,
    read_input,
    read_text,
)
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.interfaces import DispatchError, ServerView
from tritonembed_protocol.served import ServedModel
from tritonembed_protocol.types import Output

_UNPROCESSABLE, _TOO_LARGE, _FAILED = 422, 413, 424
_TYPES = {
    400: "Validation",
    401: "Unauthorized",
    403: "Unauthorized",
    413: "Validation",
    422: "Validation",
    424: "Backend",
    429: "Overloaded",
    503: "Unhealthy",
    504: "Backend",
}
_TOO_LONG = "the model's maximum of"
"""Words in the tokenizer's error for a text that is too long."""

_NO_OUTPUT = "unexpected inference output"
"""Words in Triton's error for an output that the model's repository does not have."""

_PARAMETERS = ("truncate", "truncation_direction", "prompt_name", "normalize", "dimensions", "encoding_format")
_FIELDS = ("inputs", *_PARAMETERS, "parameters", "options", "model")
"""`options` are the hub's, and have no effect here; neither has a `model` that is not served."""
_DIRECTIONS = {"right": "END", "left": "START"}
_PAIR = ("source_sentence", "sentences")

Task = Literal["embed", "embed_sparse", "embed_all", "similarity"]
_OUTPUTS: dict[Task, Output] = {"embed_sparse": "sparse", "embed_all": "multi_vector"}


def tei_form(error: BadRequest) -> tuple[int, dict[str, Any]]:
    """An error's status and body in TEI's form."""
    status = error.status
    if status == 400:
        status = _TOO_LARGE if _TOO_LONG in error.message else _UNPROCESSABLE
    elif status in (500, 501):
        status = _FAILED
    return status, {"error": error.message, "error_type": _TYPES.get(status, "Validation")}


class Tei:
    """names: of the models. The first that embeds is served, unless the path or the field `model` names another.

    servers: the dispatcher's, which know a model's length and space.
    """

    errors = staticmethod(tei_form)

    def __init__(self, calls: VectorCalls, names: ServedNames, servers: Callable[[], list[ServerView]]) -> None:
        self._calls = calls
        self._servers = servers
        self._names = names
        self._version = version("tritonembed")

    def routes(self) -> list[web.RouteDef]:
        routes = [
            web.post("/", self.either),
            web.post("/embed", self.embed),
            web.post("/embed_sparse", self.embed_sparse),
            web.post("/embed_all", self.embed_all),
            web.post("/similarity", self.similarity),
            web.get("/info", self.info),
        ]
        return [*routes, *behind_models(routes, self._names)]

    async def embed(self, request: web.Request) -> web.StreamResponse:
        """The vectors of `inputs` as lists of numbers."""
        return await self._answer(request, "embed")

    async def embed_sparse(self, request: web.Request) -> web.StreamResponse:
        """The weights of the tokens of each of `inputs`, for models that have them."""
        return await self._answer(request, "embed_sparse")

    async def embed_all(self, request: web.Request) -> web.StreamResponse:
        """The vectors of the tokens of each of `inputs`, for models that have them."""
        return await self._answer(request, "embed_all")

    async def similarity(self, request: web.Request) -> web.StreamResponse:
        """The cosine of `source_sentence` with each of `sentences`."""
        return await self._answer(request, "similarity")

    async def either(self, request: web.Request) -> web.StreamResponse:
        """Answers as /embed, or as /similarity if `inputs` is an object."""
        return await self._answer(request, None)

    async def info(self, request: web.Request) -> web.Response:
        """The model's name and what a client may send."""
        names = of_path(request, self._names)
        views = [view for view in self._servers() if view.ensemble == names.served.name]
        length = next((view.max_length for view in views if view.max_length), None)
        # A space ends with the type of the weights.
        dtype = next((view.space.rpartition("-")[2] for view in views if view.space), None)
        return web.json_response(
            {
                "model_id": names.model,
                "model_sha": None,
                "model_dtype": dtype,
                "model_type": {"embedding" if names.served.task == "embed" else "reranker": {}},
                "max_input_length": length,
                "max_client_batch_size": MAX_INPUTS,
                "auto_truncate": True,
                "version": self._version,
            }
        )

    async def _answer(self, request: web.Request, task: Task | None) -> web.StreamResponse:
        with outputs_as_errors():
            async with self._calls.embed(request, "tei", "inputs", task=task) as vectors:
                vectors.check_finite("base64 at /v1/embeddings")
                return await vectors.answer(request, _WRITERS[vectors.info["task"]](vectors))


@contextmanager
def outputs_as_errors() -> Iterator[None]:
    """Raises BadRequest for Triton's error about an output that the model does not have."""
    try:
        yield
    except DispatchError as error:
        if error.code is not grpc.StatusCode.INVALID_ARGUMENT or _NO_OUTPUT not in error.message:
            raise
        wrong = BadRequest("the servers' model has no such output", status=_FAILED)
        wrong.is_counted = True
        raise wrong from None


async def _lists(vectors: Vectors) -> AsyncIterator[bytes]:
    start = b"["
    async for rows in vectors.parts():
        yield start + b",".join(as_json(rows))
        start = b","
    yield b"]"


async def _weights(vectors: Vectors) -> AsyncIterator[bytes]:
    start = b"["
    for result in vectors.results:
        for text in result.sparse or ():
            pairs = zip(text.ids.tolist(), text.weights.tolist(), strict=True)
            yield start + json.dumps([{"index": id, "value": weight} for id, weight in pairs]).encode()
            start = b","
            await asyncio.sleep(0)
    yield b"]"


async def _token_vectors(vectors: Vectors) -> AsyncIterator[bytes]:
    start = b"["
    for result in vectors.results:
        for rows in result.multi_vector or ():
            yield start + b"[" + b",".join(as_json(rows) if rows.size else ()) + b"]"
            start = b","
            await asyncio.sleep(0)
    yield b"]"


async def _similarities(vectors: Vectors) -> AsyncIterator[bytes]:
    source, found = None, list[float]()
    async for rows in vectors.parts():
        wide = rows.astype(np.float64)
        wide /= np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
        if source is None:
            source, wide = wide[0], wide[1:]
        found += (wide @ source).tolist()
    yield json.dumps(found).encode()


_WRITERS: dict[Task, Callable[[Vectors], AsyncIterator[bytes]]] = {
    "embed": _lists,
    "embed_sparse": _weights,
    "embed_all": _token_vectors,
    "similarity": _similarities,
}


@dataclass(frozen=True)
class TeiRequest(VectorsRequest):
    """task: of the answer. `similarity` compares the first text with the others."""

    task: Task


def _find_model(body: dict[str, Any], names: ServedNames) -> ServedModel:
    """The model of the path, or of the field `model`, or the first one that embeds. Raises BadRequest."""
    asked = body.get("model")
    found = names.find(asked) if isinstance(asked, str) else None
    return embedding(found or next((each for each in names.models if each.served.task == "embed"), names))


def read_request(body: dict[str, Any], task: Task | None, model: ServedModel) -> TeiRequest:
    """model: that embeds.

    task: None for `similarity` if `inputs` is an object, else `embed`. Raises BadRequest.
    """
    check_fields(body, _FIELDS)
    inputs = body.get("inputs")
    task = task or ("similarity" if isinstance(inputs, dict) else "embed")
    elements, by_ids = (_read_pair(inputs), False) if task == "similarity" else _read_inputs(inputs)
    options = _read_options(_read_parameters(body))
    if task in _OUTPUTS:
        # Weights are never normalised. For vectors of tokens, the model's files decide.
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
    """The parameters, which some clients send in a separate object."""
    nested = body.get("parameters")
    if nested is None:
        nested = {}
    if not isinstance(nested, dict):
        raise BadRequest("parameters must be an object", "parameters")
    check_fields(nested, _PARAMETERS)
    return {**{name: body[name] for name in _PARAMETERS if name in body}, **nested}


def _read_options(given: dict[str, Any]) -> Options:
    # TEI's default, which overrides the model's files.
    normalize = read_flag(given, "normalize", default=True)
    truncate = read_truncate(given)
    prompt_name = read_text(given, "prompt_name")
    if given.get("encoding_format") not in (None, "float"):
        raise BadRequest("encoding_format must be float; /v1/embeddings has base64", "encoding_format")
    check_dimensions(given.get("dimensions"), "dimensions")
    check_prompt("prompt_name", prompt_name)
    return Options(
        truncate=truncate,
        prompt_name=prompt_name,
        normalize=normalize,
        dimensions=given.get("dimensions"),
    )


def read_truncate(given: dict[str, Any]) -> Any:
    """`truncate` of a request to the servers, of TEI's two parameters. None is the model's default, which truncates."""
    # Both are checked, also if one of them alone decides.
    truncate, direction = read_flag(given, "truncate", default=True), read_text(given, "truncation_direction")
    if direction is not None and direction.lower() not in _DIRECTIONS:
        raise BadRequest("truncation_direction must be right or left", "truncation_direction")
    if not truncate:
        return "NONE"
    if direction is not None:
        return _DIRECTIONS[direction.lower()]
    return "END" if given.get("truncate") else None


def convert(body: bytes, names: dict[str, Any], task: Task | None) -> Converted:
    """info: the task, and the options that decide how answers are read; see `converted`."""
    parsed = parse_object(body)
    asked = read_request(parsed, task, _find_model(parsed, ServedNames.from_json(names)))
    options = {"outputs": asked.options["outputs"]} if "outputs" in asked.options else {}
    return converted(asked, task=asked.task, options=options)


TOKENIZE_FIELDS = ("inputs", "add_special_tokens", "prompt_name")
DECODE_FIELDS = ("ids", "skip_special_tokens")


class TeiTokens:
    """calls: to the tokenizer of the first model, or of that of the path. names: of the models."""

    errors = staticmethod(tei_form)

    def __init__(self, calls: VectorCalls, names: ServedNames) -> None:
        self._calls = calls
        self._names = names

    def routes(self) -> list[web.RouteDef]:
        routes = [web.post("/tokenize", self.tokenize), web.post("/decode", self.decode)]
        return [*routes, *behind_models(routes, self._names)]

    async def tokenize(self, request: web.Request) -> web.Response:
        """All tokens of each of `inputs`: their ids, and their places in the text."""
        with outputs_as_errors():
            lists = await self._calls.inspect(request, "tei_tokenize")
        return web.Response(body=b"[" + b",".join(lists) + b"]", content_type="application/json")

    async def decode(self, request: web.Request) -> web.Response:
        """The texts of `ids`."""
        with outputs_as_errors():
            texts = await self._calls.inspect(request, "tei_decode")
        return web.json_response([text.decode() for text in texts])


def read_tokenize(body: dict[str, Any], model: ServedModel) -> tuple[str, list[PreparedMessage]]:
    """The output to ask for, and the requests. Raises BadRequest."""
    check_fields(body, TOKENIZE_FIELDS)
    elements, by_ids = read_input(body.get("inputs"), "inputs")
    if by_ids:
        raise BadRequest("inputs must be a string or a list of strings", "inputs")
    parameters: dict[str, bool | str] = {"add_special_tokens": read_flag(body, "add_special_tokens", default=True)}
    prompt_name = read_text(body, "prompt_name")
    check_prompt("prompt_name", prompt_name)
    if prompt_name is not None:
        parameters["prompt_name"] = prompt_name
    return TOKENS, list(prepare_for_tokenizer(model, elements, TOKENS, parameters))


def read_decode(body: dict[str, Any], model: ServedModel) -> tuple[str, list[PreparedMessage]]:
    """The body of /decode; see `read_tokenize`."""
    check_fields(body, DECODE_FIELDS)
    ids = body.get("ids")
    if not isinstance(ids, list) or not ids:
        raise BadRequest("ids must be a list of token ids, or a list of such lists, and not empty", "ids")
    if not isinstance(ids[0], list):
        ids = [ids]
    if len(ids) > MAX_INPUTS:
        raise BadRequest(f"ids has {len(ids)} elements; at most {MAX_INPUTS} are allowed", "ids", 413)
    try:
        elements = encode_token_ids(ids)
    except (InvalidArgumentError, TypeError) as error:
        raise BadRequest(f"ids: {error}", "ids") from None
    parameters: dict[str, bool | str] = {"skip_special_tokens": read_flag(body, "skip_special_tokens", default=True)}
    return DECODED, list(prepare_for_tokenizer(model, elements, DECODED, parameters))


def convert_tokenize(body: bytes, names: dict[str, Any]) -> Converted:
    """info: see `_for_tokenizer`."""
    return _for_tokenizer(*read_tokenize(parse_object(body), ServedNames.from_json(names).served))


def convert_decode(body: bytes, names: dict[str, Any]) -> Converted:
    """info: see `_for_tokenizer`."""
    return _for_tokenizer(*read_decode(parse_object(body), ServedNames.from_json(names).served))


def _for_tokenizer(output: str, requests: list[PreparedMessage]) -> Converted:
    """info: the output that the requests ask for, and the number of elements per message (counts)."""
    counts = [request.count for request in requests]
    return Converted({"output": output, "counts": counts}, [request.message for request in requests])
