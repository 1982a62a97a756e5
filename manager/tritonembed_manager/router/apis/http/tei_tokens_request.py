"""Reads and checks the bodies of requests to TEI's /tokenize and /decode; makes requests to the tokenizer of them."""

from typing import Any

from tritonembed import InvalidArgumentError
from tritonembed.inputs import encode_token_ids
from tritonembed_engine.tokenizing.inspect_parameters import DECODED, TOKENS
from tritonembed_manager.router.apis.http.errors import BadRequest
from tritonembed_manager.router.apis.http.vector_requests import (
    MAX_INPUTS,
    Prepared,
    check_prompt,
    prepare_for_tokenizer,
    read_input,
    unknown_field,
)
from tritonembed_protocol.served import ServedModel

TOKENIZE_FIELDS = ("inputs", "add_special_tokens", "prompt_name")
DECODE_FIELDS = ("ids", "skip_special_tokens")


def read_tokenize(body: dict[str, Any], model: ServedModel) -> tuple[str, list[Prepared]]:
    """The output to ask for, and the requests. Raises BadRequest."""
    _check_fields(body, TOKENIZE_FIELDS)
    elements, by_ids = read_input(body.get("inputs"), "inputs")
    if by_ids:
        raise BadRequest("inputs must be a string or a list of strings", "inputs")
    parameters: dict[str, bool | str] = {"add_special_tokens": _read_bool(body, "add_special_tokens")}
    prompt_name = body.get("prompt_name")
    if not isinstance(prompt_name, str | None):
        raise BadRequest("prompt_name must be a string", "prompt_name")
    check_prompt("prompt_name", prompt_name)
    if prompt_name is not None:
        parameters["prompt_name"] = prompt_name
    return TOKENS, list(prepare_for_tokenizer(model, elements, TOKENS, parameters))


def read_decode(body: dict[str, Any], model: ServedModel) -> tuple[str, list[Prepared]]:
    """As `read_tokenize`."""
    _check_fields(body, DECODE_FIELDS)
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
    parameters: dict[str, bool | str] = {"skip_special_tokens": _read_bool(body, "skip_special_tokens")}
    return DECODED, list(prepare_for_tokenizer(model, elements, DECODED, parameters))


def _check_fields(body: dict[str, Any], known: tuple[str, ...]) -> None:
    for name in body:
        if name not in known:
            raise unknown_field(name, known)


def _read_bool(body: dict[str, Any], name: str) -> bool:
    """Both of TEI's are true by default."""
    value = body.get(name)
    if not isinstance(value, bool | None):
        raise BadRequest(f"{name} must be true or false", name)
    return value is not False
