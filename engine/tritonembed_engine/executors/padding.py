"""Batches for a forward that takes a rectangle of tokens: sentences of similar length, padded to the longest.

The poolings here are in numpy. `pooling.Pooler` has the same poolings for a flat batch, in torch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from typing_extensions import assert_never

from tritonembed_engine.model.modules import Pooling
from tritonembed_engine.token_ids import Spans, TokenIds

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PaddedGroup:
    """Some sentences of a batch.

    rows: int64 [sentences], their indices in the batch. ids: int64 [sentences, longest]. mask: bool [sentences,
    longest], True for a sentence's own tokens. cu_seqlens: int32 [sentences + 1], the first token of each sentence and
    the end, without padding. adapter: of all sentences.
    """

    rows: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int64]
    mask: npt.NDArray[np.bool_]
    cu_seqlens: npt.NDArray[np.int32]
    adapter: str | None = None

    @property
    def has_padding(self) -> bool:
        """Whether any sentence is shorter than the longest."""
        return int(self.cu_seqlens[-1]) < self.ids.size

    def seen(self, unseen: int) -> npt.NDArray[np.bool_]:
        """Like `mask`, but False for tokens of this id at the end of a sentence; its first token stays True."""
        filler = (self.ids == unseen) | ~self.mask
        filler[:, 0] = False
        at_end = np.logical_and.accumulate(filler[:, ::-1], axis=1)[:, ::-1]
        return self.mask & ~at_end


@dataclass(frozen=True)
class Grouping:
    """How a batch is divided.

    most_padding: the most tokens of padding in a group; one more forward pass costs about as much. most_tokens: the
    most tokens of a group, padding included; a longer sentence is a group of its own.
    """

    most_padding: int
    most_tokens: int

    def groups(self, sentences: TokenIds, padding_id: int) -> Iterator[PaddedGroup]:
        """The groups of a batch, the longest sentences first. padding_id: the id that fills a row."""
        starts = np.cumsum(sentences.lengths, dtype=np.int64) - sentences.lengths
        for rows in self._rows(sentences.lengths):
            lengths = sentences.lengths[rows]
            columns = np.arange(lengths[0])
            mask = columns < lengths[:, None]
            # Indices behind a row's end point into other sentences, which the mask leaves out.
            taken = np.minimum(starts[rows][:, None] + columns, sentences.tokens - 1)
            ids = np.where(mask, sentences.ids[taken], padding_id).astype(np.int64)
            cu_seqlens = np.zeros(len(rows) + 1, dtype=np.int32)
            np.cumsum(lengths, out=cu_seqlens[1:])
            yield PaddedGroup(rows, ids, mask, cu_seqlens)

    def _rows(self, lengths: npt.NDArray[np.int32]) -> Iterator[npt.NDArray[np.int64]]:
        order = np.argsort(-lengths, kind="stable")
        start = padding = 0
        longest = int(lengths[order[0]])
        for place, length in enumerate(lengths[order].tolist()):
            padding += longest - length
            if place > start and (padding > self.most_padding or (place + 1 - start) * longest > self.most_tokens):
                yield order[start:place]
                start, padding, longest = place, 0, length
        yield order[start:]


def pool(
    poolings: Sequence[Pooling], hidden: Floats, lengths: npt.NDArray[np.int64], skips: npt.NDArray[np.int64]
) -> Floats:
    """float32 [sentences, width]: the vectors of all poolings side by side, before the model's steps.

    hidden: float32 [sentences, longest, hidden size]. lengths: [sentences], in tokens. skips: [sentences], the number
    of tokens at the start that are not pooled.
    """
    columns = np.arange(hidden.shape[1])
    kept = (columns >= skips[:, None]) & (columns < lengths[:, None])
    parts = [_pool_hidden(pooling, hidden, lengths, kept) for pooling in poolings]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def pool_spans(hidden: Floats, spans: Spans) -> Floats:
    """The mean of each span: float32 [spans, hidden size]; zeros for an empty span. hidden: as in `pool`."""
    rows = np.repeat(np.arange(len(spans.counts)), spans.counts)
    means = np.zeros((len(rows), hidden.shape[2]), np.float32)
    for place, (row, start, end) in enumerate(zip(rows, spans.starts, spans.ends, strict=True)):
        if start < end:
            means[place] = hidden[row, start:end].mean(axis=0)
    return means


def _pool_hidden(
    pooling: Pooling, hidden: Floats, lengths: npt.NDArray[np.int64], kept: npt.NDArray[np.bool_]
) -> Floats:
    if pooling is Pooling.MAX:
        largest: Floats = np.where(kept[:, :, None], hidden, np.float32("-inf")).max(axis=1)
        return largest
    weights = _weights(pooling, lengths, kept).astype(np.float32)
    # Not matmul: the threads of numpy's BLAS wait for more work in a loop, and take a core from the model's.
    pooled: Floats = np.einsum("st,sth->sh", weights, hidden)
    return pooled


def _weights(
    pooling: Literal[Pooling.CLS, Pooling.LAST_TOKEN, Pooling.MEAN, Pooling.MEAN_SQRT_LEN, Pooling.WEIGHTED_MEAN],
    lengths: npt.NDArray[np.int64],
    kept: npt.NDArray[np.bool_],
) -> npt.NDArray[np.float64]:
    """The weight of each token: [sentences, longest]."""
    places = np.arange(kept.shape[1])
    weights: npt.NDArray[np.float64]
    if pooling is Pooling.CLS:
        # The first token that is kept; the sentence's first if none is.
        weights = (places == kept.argmax(axis=1)[:, None]).astype(np.float64)
    elif pooling is Pooling.LAST_TOKEN:
        weights = ((places == lengths[:, None] - 1) & kept).astype(np.float64)
    elif pooling is Pooling.MEAN or pooling is Pooling.MEAN_SQRT_LEN or pooling is Pooling.WEIGHTED_MEAN:
        # Without a prompt, the other tokens keep their places, and so their weights.
        weights = kept * (places + 1.0 if pooling is Pooling.WEIGHTED_MEAN else 1.0)
        total = np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)
        weights = weights / (np.sqrt(total) if pooling is Pooling.MEAN_SQRT_LEN else total)
    else:
        assert_never(pooling)
    return weights
