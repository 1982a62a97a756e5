"""The arrays of a flat batch, on the host: what the model's forward and its attention need."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tritonembed_engine.token_ids import join_ids, lengths_of


@dataclass(frozen=True)
class FlatBatch:
    """Sentences one after the other, without padding.

    ids: int32 [tokens]. positions: int64 [tokens], from 0 in each sentence. starts: int32 [sentences + 1].
    lengths: int32 [sentences]. places: int64 [tokens], as positions, but that padding inside a text counts.
    """

    ids: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]
    places: npt.NDArray[np.int64]

    @property
    def tokens(self) -> int:
        """In all sentences."""
        return len(self.ids)

    @property
    def longest(self) -> int:
        """Tokens of the longest sentence."""
        return int(self.lengths.max())


def flatten(sentences: Sequence[bytes], padding_id: int | None = None) -> FlatBatch:
    """A batch from sentences, each its ids as little-endian int32.

    padding_id: for a model of RoBERTa's kind. Where a text itself holds padding, transformers gives it padding's own
    position (-1 here, the place before the first one) and does not count it.
    """
    lengths = lengths_of(sentences)
    starts = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=starts[1:])
    positions = places = np.arange(starts[-1], dtype=np.int64) - np.repeat(starts[:-1], lengths)
    ids = join_ids(sentences)
    if padding_id is not None and (ids == padding_id).any():
        counted = ids != padding_id
        # Padding up to each token, then up to its sentence's first.
        before = np.concatenate([[0], np.cumsum(~counted)])
        positions = np.where(counted, positions - (before[1:] - np.repeat(before[starts[:-1]], lengths)), -1)
    return FlatBatch(ids, positions, starts, lengths, places)


def begins_of(batch: FlatBatch, skips: Sequence[int]) -> npt.NDArray[np.int32]:
    """The first token of each sentence that is pooled: int32 [sentences]. skips: tokens of each that are not."""
    return batch.starts[:-1] + np.asarray(skips, dtype=np.int32)


def pad(batch: FlatBatch, tokens: int, longest: int) -> FlatBatch:
    """The batch with sentences of token 0 behind it, none longer than `longest`, so that it has `tokens` tokens.

    Every row belongs to a sentence: attention would leave others as the memory was, and tiles that reach over the end
    of a sentence multiply such rows by zero, which a NaN survives.
    """
    missing = tokens - batch.tokens
    if not missing:
        return batch
    starts = np.append(np.arange(batch.tokens, tokens, longest, dtype=np.int32), np.int32(tokens))
    return FlatBatch(
        np.concatenate([batch.ids, np.zeros(missing, dtype=np.int32)]),
        np.concatenate([batch.positions, np.arange(missing, dtype=np.int64) % longest]),
        np.concatenate([batch.starts[:-1], starts]),
        np.concatenate([batch.lengths, np.diff(starts)]),
        np.concatenate([batch.places, np.arange(missing, dtype=np.int64) % longest]),
    )
