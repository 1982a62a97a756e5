"""A request for vectors, of any API, and the requests that servers accept for it.

The body names the model, or the path does, for clients whose protocol has no other place for it: TEI's routes and
litellm's stand behind `/models/NAME`, OpenAI's behind `/openai/deployments/NAME`, as Azure has them.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from aiohttp import web
from tritonclient.grpc import service_pb2

from tritonembed import InvalidArgumentError
from tritonembed.inputs import batches, encode_texts, encode_token_ids
from tritonembed.request import Call, Deadline, Options
from tritonembed_manager.router.apis.http.converter import Converted
from tritonembed_manager.router.apis.http.errors import BadRequest
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.data.tenants import check_model
from tritonembed_protocol.framing import frame
from tritonembed_protocol.limits import MAX_BATCH_SIZE, MAX_INT64
from tritonembed_protocol.served import ServedModel

MAX_INPUTS = 32 * 1024
MAX_PROMPT = 64 * 1024
"""Bytes of a prompt in UTF-8. Every request of a call carries the prompt, and a server puts it before every text."""
NO_SUCH_MODEL = "this server has no such model; GET /v1/models names those that it has"
_FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
MAX_BYTES = 4 * 1024 * 1024
"""Bytes of a request with more than one element: each copy of a larger request would delay others."""


@dataclass(frozen=True)
class VectorsRequest:
    """elements: texts in UTF-8, or token ids as little-endian int32 (if by_ids). model: the requested model."""

    elements: list[bytes]
    by_ids: bool
    options: Options
    model: ServedModel


def read_input(given: Any, name: str) -> tuple[list[bytes], bool]:
    """Texts or token ids as elements, and whether they are token ids. name: of the field. Raises BadRequest."""
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, list) or not given:
        raise BadRequest(
            f"{name} must be a string, a list of strings, a list of token ids, or a list of such lists, and not empty",
            name,
        )
    first = given[0]
    by_ids = not isinstance(first, str)
    if by_ids and not isinstance(first, list):
        given = [given]
    if len(given) > MAX_INPUTS:
        raise BadRequest(f"{name} has {len(given)} elements; at most {MAX_INPUTS} are allowed", name)
    try:
        return (encode_token_ids(given) if by_ids else encode_texts(given)), by_ids
    except (InvalidArgumentError, TypeError) as error:
        raise BadRequest(f"{name}: {error}", name) from None


def check_fields(body: dict[str, Any], known: Sequence[str]) -> None:
    """Raises BadRequest for a field that an API does not have. known: its fields."""
    for name in body:
        if name not in known:
            raise _unknown_field(name, known)


def _unknown_field(name: str, known: Sequence[str]) -> BadRequest:
    fields = ", ".join(known)
    if not _FIELD_NAME.fullmatch(name):
        # The name may be a text in the wrong place, and is not repeated.
        return BadRequest(f"the request has an unknown field; known fields are {fields}", code="unknown_parameter")
    close = get_close_matches(name, known, n=1)
    meant = f"did you mean {close[0]}?" if close else f"there are {fields}"
    return BadRequest(f"{name}: there is no such field; {meant}", name, code="unknown_parameter")


def read_list(given: Any, name: str) -> list[Any]:
    """The value of a field that has to be a list. Raises BadRequest."""
    if not isinstance(given, list) or not given:
        raise BadRequest(f"{name} must be a list, and not empty", name)
    if len(given) > MAX_INPUTS:
        raise BadRequest(f"{name} has {len(given)} elements; at most {MAX_INPUTS} are allowed", name)
    return given


def read_flag(body: dict[str, Any], name: str, default: bool = False) -> bool:
    """The value of a field that may be true or false. Raises BadRequest."""
    given = body.get(name)
    if not isinstance(given, bool | None):
        raise BadRequest(f"{name} must be true or false", name)
    return default if given is None else given


def read_text(body: dict[str, Any], name: str) -> str | None:
    """The value of a field that may be a string. Raises BadRequest."""
    given = body.get(name)
    if not isinstance(given, str | None):
        raise BadRequest(f"{name} must be a string", name)
    return given


def find_model(body: dict[str, Any], names: ServedNames, default: ServedNames) -> ServedNames:
    """The model of that name; the default without a name. Raises BadRequest (404 for an unknown name)."""
    asked = read_text(body, "model")
    found = names.find(asked) if asked else default
    if found is None:
        raise BadRequest(f"model: {NO_SUCH_MODEL}", "model", 404, "model_not_found")
    return found


def read_model(body: dict[str, Any], names: ServedNames) -> ServedModel:
    """The model that has to embed: that of the field `model`, or the first. Raises BadRequest."""
    return embedding(find_model(body, names, names))


def embedding(found: ServedNames) -> ServedModel:
    """The model, which has to embed. Raises BadRequest."""
    if found.served.task == "score":
        raise BadRequest(f"model: {found.model} scores pairs of a query and a text; it does not embed", "model")
    return found.served


def check_dimensions(number: Any, name: str) -> None:
    """Raises BadRequest for a number of dimensions that no model has. name: of the field."""
    if number is not None and (type(number) is not int or not 1 <= number <= MAX_INT64):
        raise BadRequest(f"{name} must be a whole number of at least 1", name)


def check_prompt(name: str, prompt: str | None) -> None:
    """Raises BadRequest for a prompt that is too long."""
    # A lone surrogate raises UnicodeEncodeError, which errors.py answers for all strings.
    size = len(prompt.encode()) if prompt else 0
    if size > MAX_PROMPT:
        raise BadRequest(f"{name} has {size} bytes; at most {MAX_PROMPT} are allowed", name)


@dataclass(frozen=True)
class PreparedMessage:
    """message: an encoded ModelInferRequest. count: its sentences."""

    message: bytes
    count: int


def prepare_for_tokenizer(
    model: ServedModel, elements: list[bytes], output: str, parameters: dict[str, bool | str]
) -> Iterator[PreparedMessage]:
    """Requests of a model's tokenizer for one of its outputs. elements: of its input `text`."""
    for part in batches(elements, lambda part, _first: part, MAX_BATCH_SIZE, MAX_BYTES):
        message = service_pb2.ModelInferRequest(model_name=model.tokenizer, raw_input_contents=[frame(part)])
        message.inputs.add(name="text", datatype="BYTES", shape=(len(part), 1))
        message.outputs.add(name=output)
        for name, value in parameters.items():
            if isinstance(value, bool):
                message.parameters[name].bool_param = value
            else:
                message.parameters[name].string_param = value
        yield PreparedMessage(message.SerializeToString(), len(part))


def prepare(asked: VectorsRequest) -> Iterator[PreparedMessage]:
    """The requests that a server accepts."""
    model, tensor = (asked.model.embedder, "token_ids") if asked.by_ids else (asked.model.name, "text")
    parts = batches(asked.elements, lambda part, _first: part, MAX_BATCH_SIZE, MAX_BYTES)
    for request in Call(model, tensor, parts, asked.options, Deadline(None)).requests():
        yield PreparedMessage(request.message.SerializeToString(), request.count)


def converted(asked: VectorsRequest, **info: Any) -> Converted:
    """The requests. info: also the sentences per message (counts), whether they are ids (by_ids), and the model."""
    requests = list(prepare(asked))
    counts = [request.count for request in requests]
    return Converted(
        {**info, "counts": counts, "by_ids": asked.by_ids, "model": asked.model.name},
        [request.message for request in requests],
    )


MODELS, DEPLOYMENTS = "/models", "/openai/deployments"


def model_pattern(names: ServedNames) -> str:
    """The model's part of a route. Hub names and folder paths have slashes, which clients may leave unencoded."""
    every = [name for each in names.models for name in (*each.ids, *each.others)]
    slashed = [re.escape(name) for name in every if "/" in name and not {"{", "}"} & set(name)]
    return f"{{model:(?:{'|'.join(('[^{}/]+', *slashed))})}}" if slashed else "{model}"


def behind_models(routes: Iterable[web.RouteDef], names: ServedNames) -> list[web.RouteDef]:
    """The routes for the model of the path."""
    prefix = f"{MODELS}/{model_pattern(names)}"
    return [web.route(route.method, prefix + route.path.rstrip("/"), route.handler) for route in routes]


def of_path(request: web.Request, names: ServedNames) -> ServedNames:
    """The names of the model in a request's path, alone; all names if the path has no model.

    Raises BadRequest (404) for a model that is not served, DispatchError (PERMISSION_DENIED) for a model that the
    current tenant may not use.
    """
    asked = request.match_info.get("model")
    if asked is None:
        return names
    found = names.find(asked)
    if found is None:
        raise BadRequest(NO_SUCH_MODEL, "model", 404, "model_not_found")
    check_model(found.served.name)
    return replace(found, more=()) if found.more else found
