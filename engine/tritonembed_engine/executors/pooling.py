"""From the hidden states of a flat batch to one vector a sentence. Captured in CUDA graphs: no host synchronisation."""

import torch

from tritonembed_engine.executors.vllm_internals import OpenModel


def pool(model: OpenModel, hidden: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """hidden: [tokens, hidden size]. starts: int32 [sentences + 1], the first token of each sentence and the end.

    Gives float32 [sentences, dimensions], projected where the model has a Dense module, not normalised.
    """
    if model.pooling == "CLS":
        # A sentence of padding begins where the batch ends: reading there would end the process's CUDA context.
        pooled = hidden[starts[:-1].clamp_max(len(hidden) - 1)]
    elif model.pooling == "LAST":
        pooled = hidden[starts[1:] - 1]
    else:
        # In float32, as sentence-transformers does; a sentence of padding (no tokens) gives zeros.
        ends = starts.long()
        pooled = torch.segment_reduce(hidden[: len(hidden)].float(), "mean", offsets=ends, initial=0.0, unsafe=True)
    pooled = pooled.to(model.head_dtype)
    if model.projector is not None:
        pooled = model.projector(pooled)
    return pooled.float()
