"""Cohere's API for vectors: /v1/embed and /v2/embed.

One pass of the model makes all types of vectors that a request asks for: the servers send float32, and the other types
are made of it here, as the servers make them.
"""

import json
import uuid
from base64 import b64encode
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import numpy.typing as npt
from aiohttp import web

from tritonembed_engine.parameters import EmbedParameters
from tritonembed_engine.vectors import encode, normalized
from tritonembed_manager.router.apis.http.cohere_request import BASE64
from tritonembed_manager.router.apis.http.errors import BadRequest
from tritonembed_manager.router.apis.http.vector_calls import VectorCalls, Vectors, as_json
from tritonembed_protocol.types import OUTPUT_TYPES


def cohere_form(error: BadRequest) -> tuple[int, dict[str, Any]]:
    """An error's status and body in Cohere's form."""
    return error.status, {"message": error.message}


class Cohere:
    """The routes of Cohere's API."""

    errors = staticmethod(cohere_form)

    def __init__(self, calls: VectorCalls) -> None:
        self._calls = calls

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/v1/embed", self.embed_v1), web.post("/v2/embed", self.embed_v2)]

    async def embed_v1(self, request: web.Request) -> web.StreamResponse:
        """The vectors of `texts`, as numbers or in several types at once."""
        return await self._embed(request, 1)

    async def embed_v2(self, request: web.Request) -> web.StreamResponse:
        """The vectors of `texts` or `inputs`, in several types at once."""
        return await self._embed(request, 2)

    async def _embed(self, request: web.Request, version: int) -> web.StreamResponse:
        async with self._calls.embed(request, "cohere", "texts", version=version) as vectors:
            if vectors.info["embedding_types"] != [BASE64]:
                vectors.check_finite("base64")
            return await vectors.answer(request, _write(vectors, version))


async def _write(vectors: Vectors, version: int) -> AsyncIterator[bytes]:
    kinds = vectors.info["embedding_types"]
    kind = "embeddings_floats" if kinds is None else "embeddings_by_type"
    head = json.dumps({"id": str(uuid.uuid4()), "response_type": kind}).encode()
    yield head[:-1] + b',"embeddings":' + (b"" if kinds is None else b"{")
    for number, name in enumerate(kinds or ["float"]):
        start = b"[" if kinds is None else b'%b"%b":[' % (b"," if number else b"", name.encode())
        async for rows in vectors.parts():
            yield start + b",".join(_in_type(rows, name))
            start = b","
        yield b"]"
    yield b"" if kinds is None else b"}"
    start = b',"texts":['
    async for texts in vectors.texts():
        yield start + b",".join(texts)
        start = b","
    units = {"input_tokens": vectors.tokens}
    meta = {"api_version": {"version": str(version)}, "billed_units": units, "tokens": units}
    yield b'],"meta":' + json.dumps(meta).encode() + b"}"


def _in_type(rows: npt.NDArray[np.float32], kind: str) -> list[bytes]:
    if kind == BASE64:
        return [b'"' + b64encode(row.tobytes()) + b'"' for row in rows]
    if OUTPUT_TYPES[kind].unit_length:
        rows = normalized(rows)
    parameters = EmbedParameters(embedding_type=kind)
    return as_json(encode(rows, parameters))
