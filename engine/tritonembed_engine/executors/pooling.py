"""From the hidden states of a flat batch to one vector a sentence. Captured in CUDA graphs: no host synchronisation."""

from collections.abc import Callable

import torch

from tritonembed_engine.executors.vllm_internals import OpenModel

Mean = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Hidden states and starts to float32 [sentences, hidden size]; zeros where a sentence of padding is (no tokens)."""


def segment_mean(hidden: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """As Mean; in float32, as sentence-transformers does."""
    ends = starts.long()
    return torch.segment_reduce(hidden.float(), "mean", offsets=ends, initial=0.0, unsafe=True)


def pool(model: OpenModel, hidden: torch.Tensor, starts: torch.Tensor, mean: Mean = segment_mean) -> torch.Tensor:
    """hidden: [tokens, hidden size]. starts: int32 [sentences + 1], the first token of each sentence and the end.

    mean: for a model of mean pooling. Gives float32 [sentences, dimensions], projected where the model has a Dense
    module, not normalised.
    """
    if model.pooling == "CLS":
        # A sentence of padding begins where the batch ends: reading there would end the process's CUDA context.
        pooled = hidden[starts[:-1].clamp_max(len(hidden) - 1)]
    elif model.pooling == "LAST":
        pooled = hidden[starts[1:] - 1]
    else:
        pooled = mean(hidden, starts)
    pooled = pooled.to(model.head_dtype)
    if model.projector is not None:
        pooled = model.projector(pooled)
    return pooled.float()
