"""Compressed bodies, decompressed here so that each defect has an answer of its own (RFC 9110, 8.4)."""

import zlib
from collections.abc import Iterator

from tritonembed_manager.serve.http.errors import BadRequest

ENCODINGS = ("gzip", "deflate")
_GZIP = ("gzip", "x-gzip")
"""Two names of one encoding (RFC 9110, 8.4.1.3)."""
_GZIP_WINDOW = zlib.MAX_WBITS | 16
_PIECE = 256 * 1024
_WRONG = "the body does not have the form that its Content-Encoding announces"
_CUT = "the body ends before its Content-Encoding does: it was cut"
_ZLIB_METHOD = 8


class Decoder:
    """Decompresses a body chunk by chunk. header: the value of Content-Encoding. Raises BadRequest (415)."""

    def __init__(self, header: str) -> None:
        names = [name for part in header.split(",") if (name := part.strip().lower()) not in ("", "identity")]
        if len(names) > 1 or any(name not in (*_GZIP, "deflate") for name in names):
            known = " or ".join(ENCODINGS)
            raise BadRequest(f"the body's Content-Encoding must be {known}, applied once", status=415)
        self._name = names[0] if names else None
        self._stream: zlib._Decompress | None = None
        self._any = False

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        """What this chunk adds, in pieces of bounded size. Raises BadRequest for bytes of another form."""
        if self._name is None:
            yield chunk
            return
        while chunk:
            if self._stream is None:
                if self._any and not chunk.strip(b"\0"):
                    # Padding behind a gzip file, which gzip's own tools skip.
                    return
                self._stream = self._begin(chunk)
            try:
                piece = self._stream.decompress(chunk, _PIECE)
            except zlib.error:
                raise BadRequest(_WRONG) from None
            if piece:
                yield piece
            chunk = self._stream.unconsumed_tail
            if self._stream.eof:
                chunk = self._stream.unused_data
                self._stream = None
                self._any = True
                if chunk and self._name not in _GZIP:
                    raise BadRequest(_WRONG)

    def finish(self) -> None:
        """The body is over. Raises BadRequest if its compressed form is not."""
        if self._stream is not None:
            raise BadRequest(_CUT)

    def _begin(self, chunk: bytes) -> "zlib._Decompress":
        if self._name in _GZIP:
            return zlib.decompressobj(_GZIP_WINDOW)
        if self._any:
            raise BadRequest(_WRONG)
        # "deflate" is zlib's form; some send it without zlib's header.
        return zlib.decompressobj(zlib.MAX_WBITS if chunk[0] & 0xF == _ZLIB_METHOD else -zlib.MAX_WBITS)
