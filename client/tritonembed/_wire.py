"""BYTES tensors as KServe frames them: each element is its length (4 bytes, little-endian) and then its bytes.

Vectors travel as elements of one size, so a whole answer is a matrix with a header column: it is read without a
Python step per vector, and no byte of it is ever interpreted on the way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from struct import Struct
from typing import Any

import numpy as np
import numpy.typing as npt

from ._errors import InvalidArgumentError, ServerError

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


def encode_texts(texts: Iterable[str]) -> Iterator[bytes]:
    """Each text as UTF-8; an error names the text by its index, never by its words."""
    for index, text in enumerate(texts):
        try:
            yield text.encode()
        except UnicodeEncodeError as error:
            where = f"text[{index}]: a lone surrogate at character {error.start} has no UTF-8 form"
            raise InvalidArgumentError(where) from None  # the cause would carry the text
        except AttributeError:
            raise TypeError(f"text[{index}] is {type(text).__name__}, not str") from None


def encode_token_ids(sequences: Iterable[Sequence[int] | npt.NDArray[Any]]) -> Iterator[bytes]:
    """Each sequence of token ids as little-endian int32."""
    for index, sequence in enumerate(sequences):
        ids = np.asarray(sequence)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise TypeError(f"token_ids[{index}] is not a flat sequence of ints")
        if ids.dtype != np.int32 and ids.size and (ids.min() < INT32.min or ids.max() > INT32.max):
            raise InvalidArgumentError(f"token_ids[{index}]: an id does not fit in 32 bits")
        yield ids.astype("<i4", copy=False).tobytes()


def frame(elements: Sequence[bytes]) -> bytes:
    """The content of a BYTES tensor with these elements."""
    return b"".join([part for element in elements for part in (_pack_length(len(element)), element)])


def unframe_vectors(content: bytes, count: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """The (count, d) vectors of a BYTES tensor: a read-only view of ``content``, to be copied before it is given out."""
    stride, rest = divmod(len(content), count)
    width = stride - HEADER
    if rest or width <= 0 or width % dtype.itemsize:
        raise ServerError(f"output embedding: {len(content)} bytes are not {count} vectors of {dtype.name}")
    rows = np.frombuffer(content, np.uint8).reshape(count, stride)
    # Only equal bytes in every header mean that every row really starts where the first one says.
    if (rows[:, :HEADER] != np.frombuffer(_pack_length(width), np.uint8)).any():
        raise ServerError("output embedding: the vectors of one answer differ in size")
    return rows[:, HEADER:].view(dtype)
