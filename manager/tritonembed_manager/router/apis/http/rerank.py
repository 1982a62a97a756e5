"""Routes for scores: Cohere's and Jina's reranking, text-embeddings-inference's, and vLLM's /score."""

import time
import uuid
from collections.abc import Callable
from typing import Any

from aiohttp import web

from tritonembed import InvalidArgumentError
from tritonembed.inputs import encode_texts
from tritonembed_manager.router.apis.http.bodies import parse_object
from tritonembed_manager.router.apis.http.cohere import cohere_form
from tritonembed_manager.router.apis.http.converter import Converted
from tritonembed_manager.router.apis.http.errors import BadRequest, openai_form
from tritonembed_manager.router.apis.http.score_calls import (
    ScoreCalls,
    Scores,
    ScoresRequest,
    prepare_scores,
    prepare_vectors,
)
from tritonembed_manager.router.apis.http.tei import read_truncate, tei_form
from tritonembed_manager.router.apis.http.vector_requests import (
    behind_models,
    check_dimensions,
    check_fields,
    find_model,
    read_flag,
    read_list,
)
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_protocol.served import Task


class CohereRerank:
    """/v1/rerank and /v2/rerank; Jina's and vLLM's clients send the same fields."""

    errors = staticmethod(cohere_form)

    def __init__(self, calls: ScoreCalls) -> None:
        self._calls = calls

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/v1/rerank", self.rerank_v1), web.post("/v2/rerank", self.rerank_v2)]

    async def rerank_v1(self, request: web.Request) -> web.Response:
        """The `documents` with the highest scores for `query`."""
        return await self._rerank(request, 1)

    async def rerank_v2(self, request: web.Request) -> web.Response:
        """The `documents` with the highest scores for `query`."""
        return await self._rerank(request, 2)

    async def _rerank(self, request: web.Request, version: int) -> web.Response:
        async with self._calls.score(request, "cohere_rerank", version=version) as scores:
            return scores.answer(_as_cohere(scores))


def _as_cohere(scores: Scores) -> dict[str, Any]:
    """An answer with Cohere's fields, Jina's `model` and `usage`, and Infinity's `object`."""
    with_text = scores.info["return_documents"]
    results = [
        {"index": row, "relevance_score": score}
        | ({"document": {"text": scores.texts[row].decode()}} if with_text else {})
        for row, score in scores.ranked(scores.info["top_n"])
    ]
    return {
        "id": str(uuid.uuid4()),
        "object": "rerank",
        "model": scores.model,
        "results": results,
        "usage": {"prompt_tokens": scores.tokens, "total_tokens": scores.tokens},
        "meta": {
            "api_version": {"version": str(scores.info["version"])},
            "billed_units": {"search_units": 1, "input_tokens": scores.tokens},
            "tokens": {"input_tokens": scores.tokens},
        },
    }


class TeiScores:
    """TEI's /rerank and /predict."""

    errors = staticmethod(tei_form)

    def __init__(self, calls: ScoreCalls, names: ServedNames) -> None:
        self._calls = calls
        self._names = names

    def routes(self) -> list[web.RouteDef]:
        routes = [web.post("/rerank", self.rerank), web.post("/predict", self.predict)]
        return [*routes, *behind_models(routes, self._names)]

    async def rerank(self, request: web.Request) -> web.Response:
        """The `texts` with their scores for `query`, the best first; or `documents`, as /v1/rerank."""
        async with self._calls.score(request, "rerank") as scores:
            if "return_documents" in scores.info:
                return scores.answer(_as_cohere(scores))
            with_text = scores.info["return_text"]
            return scores.answer(
                [
                    {"index": row, "score": score} | ({"text": scores.texts[row].decode()} if with_text else {})
                    for row, score in scores.ranked(scores.info["top_n"])
                ]
            )

    async def predict(self, request: web.Request) -> web.Response:
        """The labels of each of `inputs` with their scores, the highest first."""
        async with self._calls.score(request, "tei_predict") as scores:
            rows = [
                sorted(
                    ({"score": score, "label": label} for label, score in zip(scores.labels, row, strict=True)),
                    key=lambda one: -float(one["score"]),
                )
                for row in scores.table.tolist()
            ]
            return scores.answer(rows if scores.info["is_batch"] else rows[0])


class VllmScore:
    """vLLM's /score and /v1/score."""

    errors = staticmethod(openai_form)

    def __init__(self, calls: ScoreCalls) -> None:
        self._calls = calls

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/score", self.score), web.post("/v1/score", self.score)]

    async def score(self, request: web.Request) -> web.Response:
        """The scores of each `text_2` for its `text_1`, in their order."""
        async with self._calls.score(request, "vllm_score") as scores:
            found = dict(scores.ranked())
            return scores.answer(
                {
                    "id": f"score-{uuid.uuid4().hex}",
                    "object": "list",
                    "created": int(time.time()),
                    "model": scores.model,
                    "data": [{"index": row, "object": "score", "score": found[row]} for row in sorted(found)],
                    "usage": {"prompt_tokens": scores.tokens, "total_tokens": scores.tokens, "completion_tokens": 0},
                }
            )


_COHERE = ("model", "query", "documents", "top_n", "return_documents", "max_tokens_per_doc", "priority")
_COHERE_V1 = (*_COHERE, "max_chunks_per_doc", "rank_fields")
_TEI_RERANK = ("query", "texts", "top_n", "raw_scores", "return_text", "truncate", "truncation_direction", "model")
_TEI_PREDICT = ("inputs", "raw_scores", "truncate", "truncation_direction", "model")
_VLLM = ("model", "text_1", "text_2", "use_activation", "late_interaction", "priority", "user", "encoding_format")


def read_cohere(body: dict[str, Any], names: ServedNames, version: int) -> ScoresRequest:
    """A body of /v1/rerank or /v2/rerank, Cohere's or Jina's. Raises BadRequest, which names the field."""
    fields = _COHERE if version > 1 else _COHERE_V1
    check_fields(body, fields)
    for name in ("max_chunks_per_doc", "rank_fields"):
        if body.get(name) is not None:
            raise BadRequest(f"{name}: documents are read whole, up to the model's maximum", name)
    query = _read_query(body)
    documents = [_read_document(one) for one in read_list(body.get("documents"), "documents")]
    top_n, most = body.get("top_n"), body.get("max_tokens_per_doc")
    check_dimensions(top_n, "top_n")
    check_dimensions(most, "max_tokens_per_doc")
    texts = _encode(documents, "documents")
    options: dict[str, str | int] = {} if most is None else {"max_text_tokens": most}
    info = {"top_n": top_n, "return_documents": read_flag(body, "return_documents"), "version": version}
    return ScoresRequest(texts, [query] * len(texts), _read_model(body, names), options, info)


def read_tei_rerank(body: dict[str, Any], names: ServedNames) -> ScoresRequest:
    """A body of TEI's /rerank, with litellm's `top_n`. Raises BadRequest, which names the field."""
    check_fields(body, _TEI_RERANK)
    check_dimensions(body.get("top_n"), "top_n")
    texts = _encode(read_list(body.get("texts"), "texts"), "texts")
    info = {"return_text": read_flag(body, "return_text"), "top_n": body.get("top_n")}
    return ScoresRequest(texts, [_read_query(body)] * len(texts), _read_model(body, names), _tei_options(body), info)


def read_rerank(body: dict[str, Any], names: ServedNames) -> ScoresRequest:
    """A body of /rerank: TEI's, or with `documents` that of /v1/rerank, as Infinity's and vLLM's clients send here."""
    return read_cohere(body, names, 1) if "documents" in body else read_tei_rerank(body, names)


def read_tei_predict(body: dict[str, Any], names: ServedNames) -> ScoresRequest:
    """A body of TEI's /predict: a text, a pair [a, b], or a list of [a] and [a, b]. Raises BadRequest."""
    check_fields(body, _TEI_PREDICT)
    given = body.get("inputs")
    is_batch = isinstance(given, list) and bool(given) and isinstance(given[0], list)
    rows: list[Any] = given if isinstance(given, list) and is_batch else [given if isinstance(given, list) else [given]]
    if not all(isinstance(row, list) and len(row) in (1, 2) for row in rows):
        raise BadRequest("inputs must be a text, a pair of texts, or a list of lists with one text or two", "inputs")
    if len({len(row) for row in rows}) > 1:
        raise BadRequest("inputs: pairs and texts alone must be in different requests", "inputs")
    texts = _encode([row[-1] for row in rows], "inputs")
    queries = _encode_queries([row[0] for row in rows], "inputs") if len(rows[0]) == 2 else None
    return ScoresRequest(texts, queries, _read_model(body, names), _tei_options(body), {"is_batch": is_batch})


def read_vllm(body: dict[str, Any], names: ServedNames) -> ScoresRequest:
    """A body of vLLM's /score: text_1 and text_2 are texts or lists, of which one may have a single text.

    late_interaction, of our own: whether the model must be an embedding model (true) or a reranker (false).
    """
    check_fields(body, _VLLM)
    late = body.get("late_interaction")
    model = _read_model(
        body, names, None if late is None else "embed" if read_flag(body, "late_interaction") else "score"
    )
    given = {name: body.get(name) for name in ("text_1", "text_2")}
    sides = {name: read_list([side] if isinstance(side, str) else side, name) for name, side in given.items()}
    encode_queries = _encode if model.served.task == "embed" else _encode_queries
    queries, texts = encode_queries(sides["text_1"], "text_1"), _encode(sides["text_2"], "text_2")
    if len(queries) != len(texts) and 1 not in (len(queries), len(texts)):
        raise BadRequest(f"text_1 has {len(queries)} texts, but text_2 has {len(texts)}", "text_2")
    if model.served.task == "embed":
        return ScoresRequest(texts, queries, model)
    rows = max(len(queries), len(texts))
    queries, texts = (side * (rows // len(side)) for side in (queries, texts))
    options: dict[str, str | int] = {}
    if not read_flag(body, "use_activation", default=True):
        options["activation"] = "none"
    return ScoresRequest(texts, queries, model, options)


def _read_model(body: dict[str, Any], names: ServedNames, task: Task | None = "score") -> ServedNames:
    """The model of that name, or the first model of the task. Raises BadRequest.

    task: the required task; None for any, with a preference for "score".
    """
    first = next((each for each in names.models if each.served.task == (task or "score")), names)
    found = find_model(body, names, first)
    if task == "score" != found.served.task:
        raise BadRequest(f"model: {found.model} embeds texts; it does not score pairs", "model")
    if task == "embed" != found.served.task:
        raise BadRequest(f"model: {found.model} scores pairs itself, without late_interaction", "model")
    return found


def _read_query(body: dict[str, Any]) -> bytes:
    query = body.get("query")
    if not isinstance(query, str) or not query:
        raise BadRequest("query must be a string, and not empty", "query")
    return query.encode()


def _read_document(given: Any) -> str:
    text = given.get("text") if isinstance(given, dict) else given
    if not isinstance(text, str):
        raise BadRequest("documents must be strings, or objects with the field text", "documents")
    return text


def _encode_queries(texts: list[Any], name: str) -> list[bytes]:
    """Queries in UTF-8. Raises BadRequest, also for an empty query."""
    if "" in texts:
        raise BadRequest(f"{name}: the query of pair {texts.index('')} is empty", name)
    return _encode(texts, name)


def _encode(texts: list[Any], name: str) -> list[bytes]:
    if not all(isinstance(text, str) for text in texts):
        raise BadRequest(f"{name} must be strings", name)
    try:
        return encode_texts(texts)
    except InvalidArgumentError as error:
        raise BadRequest(f"{name}: {error}", name) from None


def _tei_options(body: dict[str, Any]) -> dict[str, str | int]:
    options: dict[str, str | int] = {"activation": "none"} if read_flag(body, "raw_scores") else {}
    truncate = read_truncate(body)
    if truncate is not None:
        options["truncate"] = truncate
    return options


def _conversion(read: Callable[..., ScoresRequest]) -> Callable[..., Converted]:
    """read: a reader of this module."""

    def convert(body: bytes, names: dict[str, Any], **arguments: Any) -> Converted:
        """info: the number of rows per message (counts), the Triton model, and what the answer needs (info).

        of_queries: for late interaction, how many messages are of the queries.
        """
        asked = read(parse_object(body), ServedNames.from_json(names), **arguments)
        served = asked.model.served
        if served.task == "embed" and asked.queries is not None:
            queries = list(prepare_vectors(served, asked.queries, "query"))
            requests = [*queries, *prepare_vectors(served, asked.texts, "passage")]
            counts = [request.count for request in requests]
            late = {"counts": counts, "model": served.name, "of_queries": len(queries), "info": asked.info}
            return Converted(late, [request.message for request in requests])
        requests = list(prepare_scores(asked))
        info = {
            "counts": [request.count for request in requests],
            "model": served.classify if asked.queries is None else served.name,
            "info": asked.info,
        }
        return Converted(info, [request.message for request in requests])

    return convert


CONVERSIONS = {
    "cohere_rerank": _conversion(read_cohere),
    "rerank": _conversion(read_rerank),
    "tei_predict": _conversion(read_tei_predict),
    "vllm_score": _conversion(read_vllm),
}
