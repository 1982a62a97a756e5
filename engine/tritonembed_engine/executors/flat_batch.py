"""The arrays of a flat batch on the host, for the model's forward and its attention."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tritonembed_engine.token_ids import TokenIds


@dataclass(frozen=True)
class FlatBatch:
    """Sentences one after the other, without padding.

    ids: int32 [tokens]. positions: int64 [tokens], from 0 in each sentence. cu_seqlens: int32 [sentences + 1].
    lengths: int32 [sentences]. places: int64 [tokens], as positions, but padding inside a text counts.
    """

    ids: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int64]
    cu_seqlens: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]
    places: npt.NDArray[np.int64]

    @property
    def tokens(self) -> int:
        """Number of tokens in all sentences."""
        return len(self.ids)

    @property
    def longest(self) -> int:
        """Tokens of the longest sentence."""
        return int(self.lengths.max())


def flatten(sentences: TokenIds, padding_id: int | None = None) -> FlatBatch:
    """The arrays of a batch.

    padding_id: for a model of RoBERTa's kind. If a text itself holds padding, transformers gives it padding's own
    position (-1 here, the one before the first) and does not count it.
    """
    ids, lengths = sentences.ids, sentences.lengths
    cu_seqlens = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=cu_seqlens[1:])
    positions = places = np.arange(cu_seqlens[-1], dtype=np.int64) - np.repeat(cu_seqlens[:-1], lengths)
    if padding_id is not None and (ids == padding_id).any():
        counted = ids != padding_id
        # Padding up to each token, then up to its sentence's first.
        before = np.concatenate([[0], np.cumsum(~counted)])
        positions = np.where(counted, positions - (before[1:] - np.repeat(before[cu_seqlens[:-1]], lengths)), -1)
    return FlatBatch(ids, positions, cu_seqlens, lengths, places)


def begins_of(batch: FlatBatch, skips: Sequence[int]) -> npt.NDArray[np.int32]:
    """The first token of each sentence that is pooled: int32 [sentences]. skips: tokens before it in the sentence."""
    return batch.cu_seqlens[:-1] + np.asarray(skips, dtype=np.int32)


def pad(batch: FlatBatch, tokens: int, longest: int) -> FlatBatch:
    """The batch, filled up to `tokens` tokens with sentences of token 0, none longer than `longest`.

    Every row belongs to a sentence, because attention does not write other rows. Tiles that reach over the end of a
    sentence multiply them by zero, and a NaN there would survive that.
    """
    missing = tokens - batch.tokens
    if not missing:
        return batch
    cu_seqlens = np.append(np.arange(batch.tokens, tokens, longest, dtype=np.int32), np.int32(tokens))
    return FlatBatch(
        np.concatenate([batch.ids, np.zeros(missing, dtype=np.int32)]),
        np.concatenate([batch.positions, np.arange(missing, dtype=np.int64) % longest]),
        np.concatenate([batch.cu_seqlens[:-1], cu_seqlens]),
        np.concatenate([batch.lengths, np.diff(cu_seqlens)]),
        np.concatenate([batch.places, np.arange(missing, dtype=np.int64) % longest]),
    )
