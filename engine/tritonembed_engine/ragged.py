"""Rows of several sentences with different numbers of rows: weights of tokens, or vectors of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

WEIGHT = np.dtype([("id", "<i4"), ("weight", "<f4")])
"""A row of a sparse output: a token id of the model's vocabulary, and its weight."""


@dataclass(frozen=True, eq=False, slots=True)
class Ragged:
    """The rows of all sentences, in order. counts: int64 [sentences], the rows of each.

    rows: WEIGHT [rows], or float32 [rows, dimensions]. norms: float32 [rows], if the rows are vectors that were divided
    by their lengths: the lengths.
    """

    counts: npt.NDArray[np.int64]
    rows: npt.NDArray[Any]
    norms: npt.NDArray[np.float32] | None = None

    def cut(self, start: int, stop: int) -> "Ragged":
        """The rows of sentences start to stop (exclusive), without a copy."""
        if stop - start == len(self.counts):
            return self
        first, last = int(self.counts[:start].sum()), int(self.counts[:stop].sum())
        norms = None if self.norms is None else self.norms[first:last]
        return Ragged(self.counts[start:stop], self.rows[first:last], norms)

    @classmethod
    def concatenate(cls, parts: "Sequence[Ragged]") -> "Ragged":
        """All sentences of all parts; of a single part no copy is made."""
        if len(parts) == 1:
            return parts[0]
        norms = [part.norms for part in parts if part.norms is not None]
        return cls(
            np.concatenate([part.counts for part in parts]),
            np.concatenate([part.rows for part in parts]),
            np.concatenate(norms) if norms else None,
        )

    def bounds(self) -> list[tuple[int, int]]:
        """The first row of each sentence, and the row after its last."""
        ends = np.cumsum(self.counts).tolist()
        return list(zip([0, *ends[:-1]], ends, strict=True))

    def is_finite(self) -> bool:
        """Whether all numbers are finite."""
        numbers = self.norms
        if numbers is None:
            numbers = self.rows["weight"] if self.rows.dtype == WEIGHT else self.rows
        return bool(np.isfinite(numbers).all())


def heaviest_by_id(
    counts: npt.NDArray[np.int64], ids: npt.NDArray[np.int32], weights: npt.NDArray[np.float32]
) -> Ragged:
    """The largest weight of each id of a sentence, ids in ascending order; weights of 0 and less are left out.

    counts: int64 [sentences], tokens of each. ids, weights: [tokens].
    """
    sentence = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    kept = weights > 0
    # A NaN must not vanish here: the engine refuses it.
    kept |= np.isnan(weights)
    keys = (sentence[kept] << 32) | ids[kept].astype(np.int64)
    order = np.lexsort((weights[kept], keys))
    keys, sorted_weights = keys[order], weights[kept][order]
    # The last of equal keys is the heaviest.
    last = np.append(keys[1:] != keys[:-1], True)[: len(keys)]
    rows = np.empty(int(last.sum()), WEIGHT)
    rows["id"], rows["weight"] = keys[last] & 0xFFFFFFFF, sorted_weights[last]
    return Ragged(np.bincount(keys[last] >> 32, minlength=len(counts)).astype(np.int64), rows)
