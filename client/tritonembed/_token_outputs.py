"""Sparse and multi-vector outputs: weights of tokens, and a vector per token."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tritonembed_protocol.types import OUTPUTS

from ._errors import InvalidArgumentError, ServerError


@dataclass(frozen=True, eq=False)
class SparseVector:
    """The weights of a text's tokens; every other token of the vocabulary has the weight 0.

    ``ids`` is int32 (n,), ids of the model's vocabulary in ascending order. ``weights`` is float32 (n,), all above 0.
    ``tokens`` has the tokens of these ids, as the vocabulary writes them, if ``return_tokens`` asked for them.
    """

    ids: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    tokens: tuple[str, ...] | None = None

    def dot(self, other: SparseVector) -> float:
        """The score of two texts: the sum over their common ids of the product of the weights."""
        _, own, others = np.intersect1d(self.ids, other.ids, assume_unique=True, return_indices=True)
        return float(self.weights[own] @ other.weights[others])

    def as_dict(self) -> dict[int, float]:
        """Weights by id."""
        return dict(zip(self.ids.tolist(), self.weights.tolist(), strict=True))


def maxsim(query: npt.ArrayLike, documents: Iterable[npt.ArrayLike]) -> npt.NDArray[np.float32]:
    """Late interaction scores, float32 (n,): for each vector of the query the largest dot product with any of the
    document's vectors, summed.

    ``query``: (tokens, d). ``documents``: n arrays of (tokens, d); the score of one without tokens is 0.
    """
    left = np.asarray(query, np.float32)
    rows = [np.asarray(document, np.float32) for document in documents]
    return np.array([(left @ row.T).max(axis=1).sum() if row.size else 0.0 for row in rows], np.float32)


def names_of(outputs: Any) -> tuple[str, ...] | None:
    """The outputs that a call asks for, in the order of OUTPUTS; None: the model's default.

    outputs: their names, as a list or with commas. Raises InvalidArgumentError for other names, none, or one twice.
    """
    if outputs is None:
        return None
    listed = outputs.split(",") if isinstance(outputs, str) else list(outputs)
    names = [name.strip() if isinstance(name, str) else name for name in listed]
    if not names or any(name not in OUTPUTS for name in names) or len(set(names)) < len(names):
        raise InvalidArgumentError(f"outputs must be one or more of {', '.join(OUTPUTS)}, each once")
    return tuple(name for name in OUTPUTS if name in names)


def read_sparse(elements: Sequence[bytes]) -> list[SparseVector]:
    """The weights of each text. Raises ServerError if the bytes are not weights."""
    return [_read_weights(element) for element in elements]


def _read_weights(element: bytes) -> SparseVector:
    count = int.from_bytes(element[:4], "little")
    middle, end = 4 + 4 * count, 4 + 8 * count
    if len(element) < max(end, 4):
        raise ServerError("output sparse: an element is shorter than its count says")
    tokens = None
    if len(element) > end:
        try:
            tokens = tuple(map(str, json.loads(element[end:])))
        except (ValueError, TypeError):
            tokens = ()
        if len(tokens) != count:
            raise ServerError("output sparse: the tokens of an element do not fit its ids")
    ids, weights = np.frombuffer(element[4:middle], "<i4"), np.frombuffer(element[middle:end], "<f4")
    return SparseVector(ids, weights, tokens)


def read_multi_vector(elements: Sequence[bytes], dtype: np.dtype[Any]) -> list[npt.NDArray[Any]]:
    """The vectors of each text, (tokens, d). Raises ServerError if the bytes are not vectors."""
    counts = [int.from_bytes(element[:4], "little") for element in elements]
    columns = 0
    for element, count in zip(elements, counts, strict=True):
        width = count * dtype.itemsize
        if len(element) < 4 or (len(element) - 4) % (width or len(element)):
            raise ServerError(f"output multi_vector: an element is not a count and vectors of {dtype.name}")
        columns = columns or ((len(element) - 4) // width if width else 0)
    if any(
        len(element) != 4 + count * columns * dtype.itemsize for element, count in zip(elements, counts, strict=True)
    ):
        raise ServerError("output multi_vector: the number of dimensions changes within the answer")
    return [
        np.frombuffer(element, dtype, offset=4).reshape(count, columns)
        for element, count in zip(elements, counts, strict=True)
    ]
