"""From the hidden states of a padded group to one vector per sentence or span, in numpy.

The same poolings as `pooling.Pooler`, which needs torch and takes a flat batch.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from typing_extensions import assert_never

from tritonembed_engine.model.modules import Pooling
from tritonembed_engine.token_ids import Spans

Floats = npt.NDArray[np.float32]


def pool(
    poolings: Sequence[Pooling], hidden: Floats, lengths: npt.NDArray[np.int64], skips: npt.NDArray[np.int64]
) -> Floats:
    """float32 [sentences, width]: the vectors of all poolings side by side, before the model's steps.

    hidden: float32 [sentences, longest, hidden size]. lengths, skips: [sentences], tokens, and how many of them at the
    start are not pooled.
    """
    columns = np.arange(hidden.shape[1])
    kept = (columns >= skips[:, None]) & (columns < lengths[:, None])
    parts = [_pool(pooling, hidden, lengths, kept) for pooling in poolings]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def pool_spans(hidden: Floats, spans: Spans) -> Floats:
    """The mean of each span: float32 [spans, hidden size]; zeros for an empty span. hidden: as in `pool`."""
    rows = np.repeat(np.arange(len(spans.counts)), spans.counts)
    means = np.zeros((len(rows), hidden.shape[2]), np.float32)
    for place, (row, start, end) in enumerate(zip(rows, spans.starts, spans.ends, strict=True)):
        if start < end:
            means[place] = hidden[row, start:end].mean(axis=0)
    return means


def _pool(pooling: Pooling, hidden: Floats, lengths: npt.NDArray[np.int64], kept: npt.NDArray[np.bool_]) -> Floats:
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
    """How much each token counts: [sentences, longest]."""
    places = np.arange(kept.shape[1])
    weights: npt.NDArray[np.float64]
    if pooling is Pooling.CLS:
        # The first token that is kept; the sentence's first if none is.
        weights = (places == kept.argmax(axis=1)[:, None]).astype(np.float64)
    elif pooling is Pooling.LAST_TOKEN:
        weights = ((places == lengths[:, None] - 1) & kept).astype(np.float64)
    elif pooling is Pooling.MEAN or pooling is Pooling.MEAN_SQRT_LEN or pooling is Pooling.WEIGHTED_MEAN:
        # Leaving out a prompt keeps the other tokens' places, and so their weights.
        weights = kept * (places + 1.0 if pooling is Pooling.WEIGHTED_MEAN else 1.0)
        total = np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)
        weights = weights / (np.sqrt(total) if pooling is Pooling.MEAN_SQRT_LEN else total)
    else:
        assert_never(pooling)
    return weights
