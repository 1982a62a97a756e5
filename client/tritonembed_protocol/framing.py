"""BYTES tensors as KServe frames them: each element is its length (4 bytes, little-endian) and then its bytes.

Vectors travel as elements of one size, so a whole answer is a matrix with a header column. It is read without a Python
step per vector, and its bytes are never interpreted on the way.
"""

from __future__ import annotations

from struct import Struct
from struct import error as StructError
from typing import Any

import numpy as np
import numpy.typing as npt

HEADER = 4
"""Bytes of the length before each element."""

_LENGTH = Struct("<I")


class FramingError(ValueError):
    """The content of a tensor is not what was agreed on."""


def frame(elements: list[bytes]) -> bytes:
    """The content of a BYTES tensor with these elements."""
    sizes = list(map(len, elements))
    if sizes and sizes.count(sizes[0]) == len(sizes):
        # Vectors: one header serves all.
        header = _LENGTH.pack(sizes[0])
        return header + header.join(elements)
    parts = [b""] * (2 * len(elements))
    parts[0::2] = map(_LENGTH.pack, sizes)
    parts[1::2] = elements
    return b"".join(parts)


def unframe(content: bytes) -> list[bytes]:
    """The elements of a BYTES tensor. Raises FramingError for content that ends within an element."""
    elements, start, end, length_at = [], 0, len(content), _LENGTH.unpack_from
    try:
        while start < end:
            stop = start + HEADER + length_at(content, start)[0]
            elements.append(content[start + HEADER : stop])
            start = stop
    except StructError:
        start = -1
    if start != end:
        raise FramingError("the content ends within an element")
    return elements


def is_without_vectors(content: bytes, count: int) -> bool:
    """Whether all ``count`` elements of an output are empty: the model, or the request, gives another output."""
    return content == bytes(HEADER * count)


def unframe_vectors(content: bytes, count: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """The (count, d) vectors of a BYTES tensor: a read-only view of ``content``. Raises FramingError."""
    stride, rest = divmod(len(content), count)
    width = stride - HEADER
    if rest or width <= 0 or width % dtype.itemsize:
        raise FramingError(f"output embedding: {len(content)} bytes are not {count} vectors of {dtype.name}")
    rows = np.frombuffer(content, np.uint8).reshape(count, stride)
    # Only equal bytes in every header mean that every row really starts at the offset of the first header.
    if (rows[:, :HEADER] != np.frombuffer(_LENGTH.pack(width), np.uint8)).any():
        raise FramingError("output embedding: the vectors of one answer differ in size")
    return rows[:, HEADER:].view(dtype)


def rows_as_bytes(rows: npt.NDArray[np.generic]) -> list[bytes]:
    """Each row's little-endian bytes. rows: (count, d)."""
    data = np.ascontiguousarray(rows, dtype=rows.dtype.newbyteorder("<")).tobytes()
    width = rows.shape[1] * rows.dtype.itemsize
    return [data[start : start + width] for start in range(0, len(data), width)]
