"""Routes for scores: Cohere's and Jina's reranking, text-embeddings-inference's, and vLLM's /score."""

import time
import uuid
from typing import Any

from aiohttp import web

from tritonembed_manager.router.apis.http.cohere import cohere_form
from tritonembed_manager.router.apis.http.errors import openai_form
from tritonembed_manager.router.apis.http.score_calls import ScoreCalls, Scores
from tritonembed_manager.router.apis.http.tei import tei_form


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

    def __init__(self, calls: ScoreCalls) -> None:
        self._calls = calls

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/rerank", self.rerank), web.post("/predict", self.predict)]

    async def rerank(self, request: web.Request) -> web.Response:
        """The `texts` with their scores for `query`, the best first; or `documents`, as /v1/rerank."""
        async with self._calls.score(request, "rerank") as scores:
            if "return_documents" in scores.info:
                return scores.answer(_as_cohere(scores))
            with_text = scores.info["return_text"]
            return scores.answer(
                [
                    {"index": row, "score": score} | ({"text": scores.texts[row].decode()} if with_text else {})
                    for row, score in scores.ranked()
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
