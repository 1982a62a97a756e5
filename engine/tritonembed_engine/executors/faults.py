"""The causes of a failed batch: no room for it, a lost device, or another."""

import torch

from tritonembed_engine.errors import DeviceLost, EmbedError, ExecutionFailed, OutOfMemory


def explain(error: Exception) -> EmbedError:
    """The engine's own exception for one of a forward pass.

    Its message has only the exception's type: messages of torch or vLLM can contain paths.
    """
    if isinstance(error, EmbedError):
        return error
    kind = type(error).__name__
    out_of_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
    if torch.cuda.is_initialized():
        try:
            # An error poisons the context when even waiting for the device fails (CUDA's "sticky" errors).
            torch.cuda.synchronize()
            if out_of_memory:
                # Cached blocks of larger batches leave no room for smaller ones.
                torch.cuda.empty_cache()
        except RuntimeError:
            return DeviceLost(f"the GPU is lost to this process ({kind})")
    if out_of_memory:
        return OutOfMemory("the device has no room for a batch")
    return ExecutionFailed(f"a batch failed: {kind}")
