"""What a request for scores asks for, whichever API it came over, and the requests that servers accept for it.

The APIs are Cohere's and Jina's /v1/rerank and /v2/rerank, text-embeddings-inference's /rerank and /predict, and vLLM's
/score.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tritonclient.grpc import service_pb2

from tritonembed import InvalidArgumentError
from tritonembed.inputs import encode_texts
from tritonembed_manager.router.apis.http.errors import BadRequest
from tritonembed_manager.router.apis.http.vector_requests import (
    MAX_INPUTS,
    NO_SUCH_MODEL,
    Prepared,
    check_dimensions,
    unknown_field,
)
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_protocol.framing import frame
from tritonembed_protocol.limits import MAX_BATCH_SIZE

OUTPUTS = ("score", "num_tokens")
_MAX_BYTES = 4 * 1024 * 1024
"""Bytes of a request with more than one row: each copy of a larger request would delay others."""
_COHERE = ("model", "query", "documents", "top_n", "return_documents", "max_tokens_per_doc", "priority")
_COHERE_V1 = (*_COHERE, "max_chunks_per_doc", "rank_fields")
_TEI_RERANK = ("query", "texts", "raw_scores", "return_text", "truncate", "truncation_direction", "model")
_TEI_PREDICT = ("inputs", "raw_scores", "truncate", "truncation_direction", "model")
_VLLM = ("model", "text_1", "text_2", "use_activation", "priority", "user", "encoding_format")
_DIRECTIONS = {"right": "END", "left": "START"}


@dataclass(frozen=True)
class ScoresRequest:
    """texts, queries: UTF-8, as many; queries is None for texts alone. model: the one that is asked.

    options: request parameters of the servers. info: what the answer needs, as JSON.
    """

    texts: list[bytes]
    queries: list[bytes] | None
    model: ServedNames
    options: dict[str, str | int] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)


def read_cohere(body: dict[str, Any], names: ServedNames, version: int) -> ScoresRequest:
    """A body of /v1/rerank or /v2/rerank, Cohere's or Jina's. Raises BadRequest, which names the field."""
    fields = _COHERE if version > 1 else _COHERE_V1
    _check_fields(body, fields)
    for name in ("max_chunks_per_doc", "rank_fields"):
        if body.get(name) is not None:
            raise BadRequest(f"{name}: documents are read whole, up to the model's maximum", name)
    query = _read_query(body)
    documents = [_read_document(one) for one in _listed(body.get("documents"), "documents")]
    top_n, most = body.get("top_n"), body.get("max_tokens_per_doc")
    check_dimensions(top_n, "top_n")
    check_dimensions(most, "max_tokens_per_doc")
    texts = _encode(documents, "documents")
    options: dict[str, str | int] = {} if most is None else {"max_text_tokens": most}
    info = {"top_n": top_n, "return_documents": _flag(body, "return_documents"), "version": version}
    return ScoresRequest(texts, [query] * len(texts), _read_model(body, names), options, info)


def read_tei_rerank(body: dict[str, Any], names: ServedNames) -> ScoresRequest:
    """A body of TEI's /rerank. Raises BadRequest, which names the field."""
    _check_fields(body, _TEI_RERANK)
    texts = _encode(_listed(body.get("texts"), "texts"), "texts")
    info = {"return_text": _flag(body, "return_text")}
    return ScoresRequest(texts, [_read_query(body)] * len(texts), _read_model(body, names), _tei_options(body), info)


def read_rerank(body: dict[str, Any], names: ServedNames) -> ScoresRequest:
    """A body of /rerank: TEI's, or with `documents` that of /v1/rerank, as Infinity's and vLLM's clients send here."""
    return read_cohere(body, names, 1) if "documents" in body else read_tei_rerank(body, names)


def read_tei_predict(body: dict[str, Any], names: ServedNames) -> ScoresRequest:
    """A body of TEI's /predict: a text, a pair [a, b], or a list of [a] and [a, b]. Raises BadRequest."""
    _check_fields(body, _TEI_PREDICT)
    given = body.get("inputs")
    is_batch = isinstance(given, list) and bool(given) and isinstance(given[0], list)
    rows: list[Any] = given if isinstance(given, list) and is_batch else [given if isinstance(given, list) else [given]]
    if not all(isinstance(row, list) and len(row) in (1, 2) for row in rows):
        raise BadRequest("inputs must be a text, a pair of texts, or a list of lists with one text or two", "inputs")
    if len({len(row) for row in rows}) > 1:
        raise BadRequest("inputs: pairs and texts alone must be in different requests", "inputs")
    texts = _encode([row[-1] for row in rows], "inputs")
    queries = _encode([row[0] for row in rows], "inputs") if len(rows[0]) == 2 else None
    return ScoresRequest(texts, queries, _read_model(body, names), _tei_options(body), {"is_batch": is_batch})


def read_vllm(body: dict[str, Any], names: ServedNames) -> ScoresRequest:
    """A body of vLLM's /score: text_1 and text_2 are texts or lists, of which one may have a single text."""
    _check_fields(body, _VLLM)
    sides = []
    for name in ("text_1", "text_2"):
        given = body.get(name)
        sides.append(_encode(_listed([given] if isinstance(given, str) else given, name), name))
    queries, texts = sides
    if len(queries) == 1:
        queries = queries * len(texts)
    elif len(texts) == 1:
        texts = texts * len(queries)
    if len(queries) != len(texts):
        raise BadRequest(f"text_1 has {len(queries)} texts, but text_2 has {len(texts)}", "text_2")
    options: dict[str, str | int] = {}
    if body.get("use_activation") is not None and not _flag(body, "use_activation"):
        options["activation"] = "none"
    return ScoresRequest(texts, queries, _read_model(body, names), options)


def prepare_scores(asked: ScoresRequest) -> Iterator[Prepared]:
    """The requests that a server accepts."""
    served = asked.model.served
    for first, last in _parts(asked):
        request = service_pb2.ModelInferRequest(model_name=served.classify if asked.queries is None else served.name)
        inputs = {} if asked.queries is None else {"query": asked.queries[first:last]}
        for name, elements in {**inputs, "text": asked.texts[first:last]}.items():
            request.inputs.add(name=name, datatype="BYTES", shape=(last - first, 1))
            request.raw_input_contents.append(frame(elements))
        for output in OUTPUTS:
            request.outputs.add(name=output)
        for name, value in asked.options.items():
            if isinstance(value, str):
                request.parameters[name].string_param = value
            else:
                request.parameters[name].int64_param = value
        yield Prepared(request.SerializeToString(), last - first)


def _parts(asked: ScoresRequest) -> Iterator[tuple[int, int]]:
    """First and last rows of the requests."""
    first = size = 0
    for row, text in enumerate(asked.texts):
        own = len(text) + (0 if asked.queries is None else len(asked.queries[row]))
        if row > first and (row - first == MAX_BATCH_SIZE or size + own > _MAX_BYTES):
            yield first, row
            first, size = row, 0
        size += own
    yield first, len(asked.texts)


def _check_fields(body: dict[str, Any], known: Sequence[str]) -> None:
    for name in body:
        if name not in known:
            raise unknown_field(name, known)


def _read_model(body: dict[str, Any], names: ServedNames) -> ServedNames:
    """The model of that name, or the first one that scores. Raises BadRequest."""
    asked = body.get("model")
    if asked is not None and not isinstance(asked, str):
        raise BadRequest("model must be a string", "model")
    found = names.find(asked) if asked else next((each for each in names.models if each.served.task == "score"), names)
    if found is None:
        raise BadRequest(f"model: {NO_SUCH_MODEL}", "model", 404, "model_not_found")
    if found.served.task != "score":
        raise BadRequest(f"model: {found.model} embeds texts; it does not score pairs", "model")
    return found


def _read_query(body: dict[str, Any]) -> bytes:
    query = body.get("query")
    if not isinstance(query, str) or not query:
        raise BadRequest("query must be a string, and not empty", "query")
    return query.encode()


def _listed(given: Any, name: str) -> list[Any]:
    if not isinstance(given, list) or not given:
        raise BadRequest(f"{name} must be a list, and not empty", name)
    if len(given) > MAX_INPUTS:
        raise BadRequest(f"{name} has {len(given)} elements; at most {MAX_INPUTS} are allowed", name)
    return given


def _read_document(given: Any) -> str:
    text = given.get("text") if isinstance(given, dict) else given
    if not isinstance(text, str):
        raise BadRequest("documents must be strings, or objects with the field text", "documents")
    return text


def _encode(texts: list[Any], name: str) -> list[bytes]:
    if not all(isinstance(text, str) for text in texts):
        raise BadRequest(f"{name} must be strings", name)
    try:
        return encode_texts(texts)
    except InvalidArgumentError as error:
        raise BadRequest(f"{name}: {error}", name) from None


def _flag(body: dict[str, Any], name: str) -> bool:
    given = body.get(name)
    if not isinstance(given, bool | None):
        raise BadRequest(f"{name} must be true or false", name)
    return bool(given)


def _tei_options(body: dict[str, Any]) -> dict[str, str | int]:
    options: dict[str, str | int] = {"activation": "none"} if _flag(body, "raw_scores") else {}
    direction = body.get("truncation_direction")
    if direction is not None and (not isinstance(direction, str) or direction.lower() not in _DIRECTIONS):
        raise BadRequest("truncation_direction must be right or left", "truncation_direction")
    if body.get("truncate") is not None and not _flag(body, "truncate"):
        options["truncate"] = "NONE"
    elif direction is not None:
        options["truncate"] = _DIRECTIONS[direction.lower()]
    return options


READERS: dict[str, Callable[..., ScoresRequest]] = {
    "cohere_rerank": read_cohere,
    "rerank": read_rerank,
    "tei_predict": read_tei_predict,
    "vllm_score": read_vllm,
}
"""By kind of conversion (converter.py)."""
