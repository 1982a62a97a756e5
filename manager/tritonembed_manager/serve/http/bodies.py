"""Bodies of requests, read within bounds: of one, and of all that this worker holds at a time."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from aiohttp import web

from tritonembed_manager.serve.admission import MAX_REQUEST
from tritonembed_manager.serve.http.content_encoding import Decoder
from tritonembed_manager.serve.http.errors import BadRequest
from tritonembed_manager.serve.model import DispatchError

MEBIBYTE = 1024 * 1024
MAX_BODY = MAX_REQUEST
_MAX_HELD = 512 * MEBIBYTE


class Bodies:
    """The bodies that this worker holds. max_body, max_held: bytes, after decompression."""

    def __init__(self, max_body: int = MAX_BODY, max_held: int = _MAX_HELD) -> None:
        self._max_body = max_body
        self._max_held = max_held
        self.held = 0

    @asynccontextmanager
    async def read(self, request: web.Request) -> AsyncIterator[bytes]:
        """The body, decompressed, which counts until the block is left.

        Raises BadRequest (413; 415 for an encoding that is not known) and DispatchError (too much held).
        """
        decoder = Decoder(",".join(request.headers.getall("Content-Encoding", ())))
        announced = request.content_length or 0
        if announced > self._max_body:
            raise self._too_large()
        chunks: list[bytes] = []
        size = 0
        try:
            async for sent in request.content.iter_any():
                for chunk in decoder.pieces(sent):
                    size += len(chunk)
                    self.held += len(chunk)
                    if size > self._max_body:
                        raise self._too_large()
                    if self.held > self._max_held and self.held > size:
                        message = f"overloaded: {self._max_held} bytes of requests are being read; try again"
                        raise DispatchError(grpc.StatusCode.RESOURCE_EXHAUSTED, message, 1.0)
                    chunks.append(chunk)
            decoder.finish()
            body = b"".join(chunks)
            chunks.clear()
            yield body
        except web.RequestPayloadError:
            raise BadRequest("the body does not have the form that its headers announce") from None
        finally:
            self.held -= size

    def _too_large(self) -> BadRequest:
        return BadRequest(f"the body has more than {self._max_body} bytes", status=413)


def parse_object(text: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises BadRequest."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except UnicodeDecodeError:
        raise BadRequest("the body is not JSON: it is not UTF-8") from None
    except (ValueError, RecursionError):
        raise BadRequest(
            "the body is not JSON that can be read: a number is too long, or it is nested too deep"
        ) from None
    if not isinstance(found, dict):
        raise BadRequest("the body is not a JSON object")
    return found
