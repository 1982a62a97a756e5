"""The routes of text-embeddings-inference (TEI), which Hugging Face's, LangChain's and LlamaIndex's clients speak.

Errors have TEI's form and its statuses: 413 for a text that is too long or too many texts, 422 for other bad input,
424 if the servers failed, 429 for overload.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import grpc
import numpy as np
from aiohttp import web

from tritonembed_manager.router.apis.http.errors import BadRequest
from tritonembed_manager.router.apis.http.tei_request import Task
from tritonembed_manager.router.apis.http.vector_calls import VectorCalls, Vectors, as_json
from tritonembed_manager.router.apis.http.vector_requests import MAX_INPUTS
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.interfaces import DispatchError, ServerView

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
"""In the tokenizer's error for a text that is too long."""

_NO_OUTPUT = "unexpected inference output"
"""In Triton's error for an output that the model's repository does not have."""


def tei_form(error: BadRequest) -> tuple[int, dict[str, Any]]:
    """An error's status and body in TEI's form."""
    status = error.status
    if status == 400:
        status = _TOO_LARGE if _TOO_LONG in error.message else _UNPROCESSABLE
    elif status in (500, 501):
        status = _FAILED
    return status, {"error": error.message, "error_type": _TYPES.get(status, "Validation")}


class Tei:
    """names: of the models, of which the first is served. servers: as the dispatcher has them; they know a model's
    length and space."""

    errors = staticmethod(tei_form)

    def __init__(self, calls: VectorCalls, names: ServedNames, servers: Callable[[], list[ServerView]]) -> None:
        self._calls = calls
        self._servers = servers
        self._names = names
        self._version = version("tritonembed")

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/", self.either),
            web.post("/embed", self.embed),
            web.post("/embed_sparse", self.embed_sparse),
            web.post("/embed_all", self.embed_all),
            web.post("/similarity", self.similarity),
            web.post("/tokenize", self.tokenize),
            web.post("/decode", self.decode),
            web.get("/info", self.info),
        ]

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
        """As /embed; as /similarity if `inputs` is an object."""
        return await self._answer(request, None)

    async def tokenize(self, request: web.Request) -> web.Response:
        """The tokens of each of `inputs`, whole: with their ids, and where they are in the text."""
        with _outputs_as_errors():
            lists = await self._calls.inspect(request, "tei_tokenize")
        return web.Response(body=b"[" + b",".join(lists) + b"]", content_type="application/json")

    async def decode(self, request: web.Request) -> web.Response:
        """The texts of `ids`."""
        with _outputs_as_errors():
            texts = await self._calls.inspect(request, "tei_decode")
        return web.json_response([text.decode() for text in texts])

    async def info(self, _request: web.Request) -> web.Response:
        """The model's name and what a client may send."""
        views = [view for view in self._servers() if view.ensemble == self._names.served.name]
        length = next((view.max_length for view in views if view.max_length), None)
        # A space ends with the type of the weights.
        dtype = next((view.space.rpartition("-")[2] for view in views if view.space), None)
        return web.json_response(
            {
                "model_id": self._names.model,
                "model_sha": None,
                "model_dtype": dtype,
                "model_type": {"embedding" if self._names.served.task == "embed" else "reranker": {}},
                "max_input_length": length,
                "max_client_batch_size": MAX_INPUTS,
                "auto_truncate": True,
                "version": self._version,
            }
        )

    async def _answer(self, request: web.Request, task: Task | None) -> web.StreamResponse:
        with _outputs_as_errors():
            async with self._calls.embed(request, "tei", "inputs", task=task) as vectors:
                vectors.check_finite("base64 at /v1/embeddings")
                return await vectors.answer(request, _WRITERS[vectors.info["task"]](vectors))


@contextmanager
def _outputs_as_errors() -> Iterator[None]:
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
