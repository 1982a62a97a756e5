"""From the hidden states of a flat batch to one vector a sentence. Captured in CUDA graphs: no host synchronisation."""

from collections.abc import Callable, Sequence

import torch

from tritonembed_engine.model.modules import PoolingMode
from tritonembed_engine.model.steps import Steps

Mean = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Hidden states and starts to float32 [sentences, hidden size]; zeros where a sentence of padding is (no tokens)."""


def segment_mean(hidden: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """As Mean; in float32, as sentence-transformers does."""
    return torch.segment_reduce(hidden.float(), "mean", offsets=starts.long(), initial=0.0, unsafe=True)


class Pooler:
    """A model's pooling and the steps after it."""

    def __init__(self, modes: Sequence[PoolingMode], steps: Steps, mean: Mean = segment_mean) -> None:
        """modes: their vectors stand side by side. mean: for "mean" over whole sentences."""
        self._modes = modes
        self._steps = steps
        self._mean = mean

    def __call__(self, hidden: torch.Tensor, starts: torch.Tensor, begins: torch.Tensor | None = None) -> torch.Tensor:
        """float32 [sentences, dimensions], without the normalisation at the end.

        hidden: [tokens, hidden size]. starts: int32 [sentences + 1], the first token of each sentence and the end.
        begins: int32 [sentences], the first token of each that is pooled; None: all are.
        """
        parts = [self._pool(mode, hidden, starts, begins) for mode in self._modes]
        return self._steps(parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1))

    def _pool(
        self, mode: PoolingMode, hidden: torch.Tensor, starts: torch.Tensor, begins: torch.Tensor | None
    ) -> torch.Tensor:
        if mode == "mean" and begins is None:
            return self._mean(hidden, starts)
        if mode == "lasttoken":
            last = hidden[starts[1:] - 1].float()
            # Zeros where all of a sentence is its prompt.
            return last if begins is None else last.masked_fill((begins >= starts[1:])[:, None], 0.0)
        if mode == "cls":
            # A sentence of padding begins where the batch ends: reading there would end the process's CUDA context.
            first = starts[:-1] if begins is None else torch.where(begins < starts[1:], begins, starts[:-1])
            return hidden[first.clamp_max(len(hidden) - 1)].float()
        return _over_tokens(mode, hidden.float(), starts, begins)


def _over_tokens(
    mode: PoolingMode, hidden: torch.Tensor, starts: torch.Tensor, begins: torch.Tensor | None
) -> torch.Tensor:
    """The poolings that weigh tokens; formulas of sentence-transformers' Pooling, whose sums end at 1e-9."""
    token = torch.arange(len(hidden), device=hidden.device)
    sentence = torch.bucketize(token, starts[1:].contiguous(), right=True).clamp_max(len(starts) - 2)
    kept = torch.ones_like(token, dtype=torch.bool) if begins is None else token >= begins[sentence]
    offsets = starts.long()
    if mode == "max":
        hidden = hidden.masked_fill(~kept[:, None], float("-inf"))
        return torch.segment_reduce(hidden, "max", offsets=offsets, initial=float("-inf"), unsafe=True)
    # Excluding a prompt keeps the other tokens' places, and so their weights.
    weight = (token - starts[sentence] + 1 if mode == "weightedmean" else torch.ones_like(token)) * kept
    weights = weight.float()[:, None]
    total = torch.segment_reduce(hidden * weights, "sum", offsets=offsets, initial=0.0, unsafe=True)
    count = torch.segment_reduce(weights, "sum", offsets=offsets, initial=0.0, unsafe=True).clamp_min(1e-9)
    return total / (count.sqrt() if mode == "mean_sqrt_len_tokens" else count)
