"""The routes of text-embeddings-inference (TEI) for tokens: /tokenize and /decode."""

from typing import Any

from aiohttp import web

from tritonembed import InvalidArgumentError
from tritonembed.inputs import encode_token_ids
from tritonembed_engine.tokenizing.inspect_parameters import DECODED, TOKENS
from tritonembed_manager.router.apis.http.bodies import parse_object
from tritonembed_manager.router.apis.http.converter import Converted
from tritonembed_manager.router.apis.http.errors import BadRequest
from tritonembed_manager.router.apis.http.model_paths import behind_models
from tritonembed_manager.router.apis.http.tei import outputs_as_errors, tei_form
from tritonembed_manager.router.apis.http.vector_calls import VectorCalls
from tritonembed_manager.router.apis.http.vector_requests import (
    MAX_INPUTS,
    Prepared,
    check_fields,
    check_prompt,
    prepare_for_tokenizer,
    read_flag,
    read_input,
    read_text,
)
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_protocol.served import ServedModel

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
        """The tokens of each of `inputs`, whole: with their ids, and where they are in the text."""
        with outputs_as_errors():
            lists = await self._calls.inspect(request, "tei_tokenize")
        return web.Response(body=b"[" + b",".join(lists) + b"]", content_type="application/json")

    async def decode(self, request: web.Request) -> web.Response:
        """The texts of `ids`."""
        with outputs_as_errors():
            texts = await self._calls.inspect(request, "tei_decode")
        return web.json_response([text.decode() for text in texts])


def read_tokenize(body: dict[str, Any], model: ServedModel) -> tuple[str, list[Prepared]]:
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


def read_decode(body: dict[str, Any], model: ServedModel) -> tuple[str, list[Prepared]]:
    """As `read_tokenize`."""
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


def _for_tokenizer(output: str, requests: list[Prepared]) -> Converted:
    """info: the output that the requests ask for, and the number of elements per message (counts)."""
    counts = [request.count for request in requests]
    return Converted({"output": output, "counts": counts}, [request.message for request in requests])
