"""Putting the answers of one call together."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from typing import Any

import numpy as np
import numpy.typing as npt

from ._results import EmbeddingResult


def rows_of(inputs: Iterable[object]) -> int | None:
    """How many inputs there are, where they are there already; None where they come one by one."""
    return len(inputs) if isinstance(inputs, Sized) else None


class Collector:
    """Copies answers, in order, into memory of its own while the next ones are still on their way.

    ``rows``: how many there will be, where that is known: then they are written to their place at once.
    """

    def __init__(self, rows: int | None) -> None:
        self._capacity = rows or 0
        self._count = 0
        self._embeddings: npt.NDArray[Any] | None = None
        self._num_tokens = np.empty(self._capacity, np.int32)

    def add(self, answer: EmbeddingResult) -> None:
        """Take the next answer, of the same width as those before it."""
        if self._embeddings is None:
            self._embeddings = np.empty((self._capacity, answer.embeddings.shape[1]), answer.embeddings.dtype)
        end = self._count + len(answer.num_tokens)
        if end > self._capacity:
            self._resize(max(end, 2 * self._capacity))
        self._embeddings[self._count : end] = answer.embeddings
        self._num_tokens[self._count : end] = answer.num_tokens
        self._count = end

    def result(self) -> EmbeddingResult | None:
        """Everything added, or None where nothing was."""
        if self._embeddings is None:
            return None
        if self._capacity > self._count:
            self._resize(self._count)
        return EmbeddingResult(self._embeddings, self._num_tokens)

    def _resize(self, rows: int) -> None:
        # refcheck would refuse while a debugger or a profiler looks at the array; nobody else has been given it.
        assert self._embeddings is not None
        self._embeddings.resize((rows, self._embeddings.shape[1]), refcheck=False)
        self._num_tokens.resize(rows, refcheck=False)
        self._capacity = rows
