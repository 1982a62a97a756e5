"""OpenAI's API: /v1/embeddings and /v1/models."""

import json
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import numpy.typing as npt
from aiohttp import web

from tritonembed_manager.router.apis.http.errors import BadRequest, openai_form
from tritonembed_manager.router.apis.http.openai_request import field_at_fault
from tritonembed_manager.router.apis.http.vector_calls import VectorCalls, Vectors, as_json
from tritonembed_manager.router.apis.http.vector_requests import NO_SUCH_MODEL
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.data.tenants import current_tenant
from tritonembed_manager.router.interfaces import DispatchError, ServerView


class OpenAI:
    """The routes of OpenAI's API. names: of the models."""

    errors = staticmethod(openai_form)

    def __init__(self, calls: VectorCalls, names: ServedNames, servers: Callable[[], list[ServerView]] = list) -> None:
        """servers: as the dispatcher has them; they tell a model's dimensions and length."""
        self._servers = servers
        self._calls = calls
        self._names = names
        self._created = int(time.time())

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/embeddings", self.embeddings),
            # For clients whose base URL lacks /v1.
            web.post("/embeddings", self.embeddings),
            web.get("/v1/models", self.models),
            web.get("/models", self.models),
            web.get("/v1/models/{model:.+}", self.one_model),
        ]

    async def embeddings(self, request: web.Request) -> web.StreamResponse:
        """The vectors of `input`, as lists of numbers or as base64 of their little-endian bytes."""
        try:
            async with self._calls.embed(request, "openai", "input") as vectors:
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
        """OpenAI's fields, vLLM's `max_model_len`, and our own `task` and `dimensions`; null if they are not known."""
        views = [view for view in self._servers() if view.ensemble == names.served.name]
        return {
            "id": id,
            "object": "model",
            "created": self._created,
            "owned_by": "tritonembed",
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
    """Whether the current tenant, if there is one, may use a model."""
    tenant = current_tenant()
    return tenant is None or tenant.may_use(names.served.name)


def _texts(rows: npt.NDArray[Any], *, as_base64: bool) -> list[bytes]:
    if as_base64:
        return [b'"' + b64encode(row.tobytes()) + b'"' for row in rows]
    return as_json(rows)
