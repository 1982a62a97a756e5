"""From the hidden states of a flat batch to a vector per sentence.

CUDA graphs capture it: nothing in it waits for the GPU.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch

from tritonembed_engine.model.modules import Pooling
from tritonembed_engine.model.steps import Steps

Mean = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From hidden states and cu_seqlens to float32 [sentences, hidden size]; zeros for a sentence without tokens."""


def segment_mean(hidden: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
    """A Mean in float32, as sentence-transformers computes it."""
    return torch.segment_reduce(hidden.float(), "mean", offsets=cu_seqlens.long(), initial=0.0, unsafe=True)


def reads_rows(poolings: Sequence[Pooling]) -> bool:
    """Whether a pooling reads one token per sentence."""
    return list(poolings) in ([Pooling.CLS], [Pooling.LAST_TOKEN])


class Pooler:
    """A model's pooling and the steps after it."""

    def __init__(self, poolings: Sequence[Pooling], steps: Steps, mean: Mean = segment_mean) -> None:
        """poolings: their vectors stand side by side. mean: for Pooling.MEAN over whole sentences."""
        self._poolings = [Pooling(pooling) for pooling in poolings]
        self._steps = steps
        self._mean = mean

    @property
    def pools(self) -> bool:
        """Whether there is a pooling; a model that pools itself has none, and `finish` takes its vectors."""
        return bool(self._poolings)

    @property
    def reads_rows(self) -> bool:
        """Whether it reads one token per sentence (see `rows`)."""
        return reads_rows(self._poolings)

    def rows(self, cu_seqlens: torch.Tensor, tokens: int) -> torch.Tensor:
        """The token of each sentence that is pooled, int64 [sentences]; only if `reads_rows`. tokens: of the batch.

        cu_seqlens: int32 [sentences + 1]. A sentence without tokens gets some token of the batch.
        """
        if self._poolings == [Pooling.LAST_TOKEN]:
            return cu_seqlens[1:].long() - 1
        # A sentence of padding begins where the batch ends: reading there would end the process's CUDA context.
        return cu_seqlens[:-1].long().clamp_max(tokens - 1)

    def finish(self, pooled: torch.Tensor) -> torch.Tensor:
        """The steps after the pooling. pooled: [sentences, width], of any type."""
        return self._steps(pooled.float())

    def __call__(
        self, hidden: torch.Tensor, cu_seqlens: torch.Tensor, begins: torch.Tensor | None = None
    ) -> torch.Tensor:
        """float32 [sentences, dimensions], without the normalisation at the end.

        hidden: [tokens, hidden size]. cu_seqlens: int32 [sentences + 1], the first token of each sentence and the end.
        begins: int32 [sentences], the first token of each that is pooled; None: all are.
        """
        parts = [self._pool(pooling, hidden, cu_seqlens, begins) for pooling in self._poolings]
        return self._steps(parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1))

    @property
    def pools_spans(self) -> bool:
        """Whether the pooling of a part of a sentence is that of the model: a mean."""
        return self._poolings == [Pooling.MEAN]

    def of_spans(self, hidden: torch.Tensor, places: Sequence[tuple[int, int]]) -> torch.Tensor:
        """The mean of each span and the model's steps: float32 [spans, dimensions].

        hidden: [tokens, hidden size]. places: start and end of each span in the batch; zeros for an empty one.
        """
        zeros = torch.zeros(hidden.shape[1], device=hidden.device)
        means = [hidden[start:end].float().mean(0) if start < end else zeros for start, end in places]
        return self._steps(torch.stack(means))

    def _pool(
        self, pooling: Pooling, hidden: torch.Tensor, cu_seqlens: torch.Tensor, begins: torch.Tensor | None
    ) -> torch.Tensor:
        if pooling is Pooling.MEAN and begins is None:
            return self._mean(hidden, cu_seqlens)
        if pooling is Pooling.LAST_TOKEN:
            last = hidden[cu_seqlens[1:] - 1].float()
            # Zeros if the whole sentence is its prompt.
            return last if begins is None else last.masked_fill((begins >= cu_seqlens[1:])[:, None], 0.0)
        if pooling is Pooling.CLS:
            # A sentence of padding begins where the batch ends: reading there would end the process's CUDA context.
            starts = cu_seqlens[:-1]
            first = starts if begins is None else torch.where(begins < cu_seqlens[1:], begins, starts)
            return hidden[first.clamp_max(len(hidden) - 1)].float()
        return _over_tokens(pooling, hidden.float(), cu_seqlens, begins)


def _over_tokens(
    pooling: Literal[Pooling.MAX, Pooling.MEAN, Pooling.MEAN_SQRT_LEN, Pooling.WEIGHTED_MEAN],
    hidden: torch.Tensor,
    cu_seqlens: torch.Tensor,
    begins: torch.Tensor | None,
) -> torch.Tensor:
    """The poolings that weigh tokens. Formulas as in sentence-transformers' Pooling, which divides by at least 1e-9."""
    token = torch.arange(len(hidden), device=hidden.device)
    sentence = torch.bucketize(token, cu_seqlens[1:].contiguous(), right=True).clamp_max(len(cu_seqlens) - 2)
    kept = torch.ones_like(token, dtype=torch.bool) if begins is None else token >= begins[sentence]
    offsets = cu_seqlens.long()
    if pooling is Pooling.MAX:
        hidden = hidden.masked_fill(~kept[:, None], float("-inf"))
        return torch.segment_reduce(hidden, "max", offsets=offsets, initial=float("-inf"), unsafe=True)
    # Without a prompt, the other tokens keep their places, and so their weights.
    weight = (token - cu_seqlens[sentence] + 1 if pooling is Pooling.WEIGHTED_MEAN else torch.ones_like(token)) * kept
    weights = weight.float()[:, None]
    total = torch.segment_reduce(hidden * weights, "sum", offsets=offsets, initial=0.0, unsafe=True)
    count = torch.segment_reduce(weights, "sum", offsets=offsets, initial=0.0, unsafe=True).clamp_min(1e-9)
    return total / (count.sqrt() if pooling is Pooling.MEAN_SQRT_LEN else count)
