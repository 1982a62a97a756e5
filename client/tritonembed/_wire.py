"""BYTES tensors as KServe frames them: each element is its length (4 bytes, little-endian) and then its bytes.

Vectors travel as elements of one size, so a whole answer is a matrix with a header column: it is read without a
Python step per vector, and no byte of it is ever interpreted on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Any

import numpy as np
import numpy.typing as npt

from ._errors import InvalidArgumentError, ServerError

TokenIds = Sequence[int] | npt.NDArray[np.integer[Any]]

HEADER = 4
INT32 = np.iinfo(np.int32)
VECTOR_DTYPES: dict[str, np.dtype[Any]] = {
    "float": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "int8": np.dtype(np.int8),
    "uint8": np.dtype(np.uint8),
    "binary": np.dtype(np.int8),
    "ubinary": np.dtype(np.uint8),
}

_pack_length = Struct("<I").pack


def vector_dtype(embedding_type: str) -> np.dtype[Any]:
    """The dtype of the vectors of an ``embedding_type``."""
    try:
        return VECTOR_DTYPES[embedding_type]
    except (KeyError, TypeError):
        raise InvalidArgumentError(f"embedding_type must be one of {', '.join(VECTOR_DTYPES)}") from None


def encode_texts(texts: list[str], first: int = 0) -> list[bytes]:
    """Each text as UTF-8; an error names the text by its index (from ``first`` on), never by its words."""
    try:
        # str.encode as a function, not as a method: it also refuses whatever is not a str.
        return list(map(str.encode, texts))
    except (UnicodeEncodeError, TypeError):
        raise _unencodable(texts, first) from None  # the cause would carry the text


def _unencodable(texts: list[str], first: int) -> Exception:
    for index, text in enumerate(texts, first):
        if not isinstance(text, str):
            return TypeError(f"text[{index}] is {type(text).__name__}, not str")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            message = f"text[{index}]: a lone surrogate at character {error.start} has no UTF-8 form"
            return InvalidArgumentError(message)
    raise AssertionError("one of the texts was refused")


def encode_token_ids(sequences: list[TokenIds], first: int = 0) -> list[bytes]:
    """Each sequence of token ids as little-endian int32; an error names it by its index (from ``first`` on)."""
    return [_token_ids(sequence, index) for index, sequence in enumerate(sequences, first)]


def _token_ids(sequence: TokenIds, index: int) -> bytes:
    try:
        ids = np.asarray(sequence)
    except ValueError:
        ids = np.empty((0, 0))  # sequences of different lengths
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iuO"):
        raise TypeError(f"token_ids[{index}] is not a flat sequence of ints")
    if ids.dtype.kind == "O" and not all(isinstance(number, int) for number in ids):
        raise TypeError(f"token_ids[{index}] is not a flat sequence of ints")
    # Beyond 64 bits numpy keeps ints as objects; beyond 32 they would wrap around silently.
    if ids.dtype != np.int32 and ids.size and (ids.min() < INT32.min or ids.max() > INT32.max):
        raise InvalidArgumentError(f"token_ids[{index}]: an id does not fit in 32 bits")
    return ids.astype("<i4", copy=False).tobytes()


def frame(elements: list[bytes]) -> bytes:
    """The content of a BYTES tensor with these elements."""
    parts = [b""] * (2 * len(elements))
    parts[0::2] = map(_pack_length, map(len, elements))
    parts[1::2] = elements
    return b"".join(parts)


def unframe_vectors(content: bytes, count: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """The (count, d) vectors of a BYTES tensor: a read-only view of ``content``, not to be given out."""
    stride, rest = divmod(len(content), count)
    width = stride - HEADER
    if rest or width <= 0 or width % dtype.itemsize:
        raise ServerError(f"output embedding: {len(content)} bytes are not {count} vectors of {dtype.name}")
    rows = np.frombuffer(content, np.uint8).reshape(count, stride)
    # Only equal bytes in every header mean that every row really starts where the first one says.
    if (rows[:, :HEADER] != np.frombuffer(_pack_length(width), np.uint8)).any():
        raise ServerError("output embedding: the vectors of one answer differ in size")
    return rows[:, HEADER:].view(dtype)
