"""OpenAI's API: /v1/embeddings and /v1/models."""

import asyncio
import json
import time
from base64 import b64encode

import grpc
import numpy as np
import numpy.typing as npt
from aiohttp import web

from tritonembed import ServerError
from tritonembed_manager.serve.http.bodies import Bodies, parse_object
from tritonembed_manager.serve.http.embeddings import embed
from tritonembed_manager.serve.http.errors import BadRequest
from tritonembed_manager.serve.http.json_floats import json_rows
from tritonembed_manager.serve.http.openai_request import field_at_fault, read_request
from tritonembed_manager.serve.model import Dispatcher, DispatchError
from tritonembed_manager.serve.tracing import metadata_of

_ROWS_AT_ONCE = 64
"""Vectors that are written before other requests have their turn."""


class OpenAI:
    """model: what --model said."""

    def __init__(self, dispatcher: Dispatcher, model: str, bodies: Bodies) -> None:
        self._dispatcher = dispatcher
        self._model = model
        self._bodies = bodies
        self._description = {"id": model, "object": "model", "created": int(time.time()), "owned_by": "tritonembed"}

    def routes(self) -> list[web.RouteDef]:
        """What it answers."""
        return [
            web.post("/v1/embeddings", self.embeddings),
            web.get("/v1/models", self.models),
            web.get("/v1/models/{model:.+}", self.one_model),
        ]

    async def embeddings(self, request: web.Request) -> web.Response:
        """Vectors of `input`, as lists of numbers or as base64 of little-endian float32."""
        async with self._bodies.read(request) as body:
            asked = read_request(parse_object(body), self._model)
            try:
                vectors, tokens = await embed(
                    self._dispatcher,
                    asked.elements,
                    by_ids=asked.by_ids,
                    options=asked.options,
                    metadata=metadata_of(request.headers),
                )
            except DispatchError as error:
                if error.code is grpc.StatusCode.INVALID_ARGUMENT:
                    raise BadRequest(error.message, field_at_fault(error.message)) from None
                raise
        return web.Response(
            body=await self._write(vectors, tokens, as_base64=asked.as_base64), content_type="application/json"
        )

    async def models(self, _request: web.Request) -> web.Response:
        """The one model."""
        return web.json_response({"object": "list", "data": [self._description]})

    async def one_model(self, request: web.Request) -> web.Response:
        """The same by its name."""
        # A name may have slashes; one behind it is not part of it.
        if request.match_info["model"].rstrip("/") != self._model:
            raise BadRequest("this server has no such model; GET /v1/models names it", "model", 404, "model_not_found")
        return web.json_response(self._description)

    async def _write(self, parts: list[npt.NDArray[np.float32]], tokens: int, *, as_base64: bool) -> bytes:
        items: list[bytes] = []
        for vectors in parts:
            for at in range(0, len(vectors), _ROWS_AT_ONCE):
                if items:
                    await asyncio.sleep(0)
                rows = vectors[at : at + _ROWS_AT_ONCE]
                items += map(_item, range(len(items), len(items) + len(rows)), _texts(rows, as_base64=as_base64))
        end = {"model": self._model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
        return b"".join((b'{"object":"list","data":[', b",".join(items), b"],", json.dumps(end).encode()[1:]))


def _item(index: int, vector: bytes) -> bytes:
    return b'{"object":"embedding","index":%d,"embedding":%b}' % (index, vector)


def _texts(rows: npt.NDArray[np.float32], *, as_base64: bool) -> list[bytes]:
    if as_base64:
        return [b'"' + b64encode(row.tobytes()) + b'"' for row in rows]
    if not np.isfinite(rows).all():
        raise ServerError("output embedding: a number that is not finite cannot be written as JSON; ask for base64")
    return json_rows(rows)
