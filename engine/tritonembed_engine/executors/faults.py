"""What went wrong on the device: no room for this batch, a lost device, or something else."""

import torch

from tritonembed_engine.errors import DeviceLost, EmbedError, ExecutionFailed, OutOfMemory


def explain(error: Exception) -> EmbedError:
    """Turn an exception of a forward pass into the engine's own.

    The type of the exception alone goes into the message: a message of torch or vLLM can hold paths.
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
                # Blocks cached for larger batches are in the way of smaller ones.
                torch.cuda.empty_cache()
        except RuntimeError:
            return DeviceLost(f"the GPU is lost to this process ({kind})")
    if out_of_memory:
        return OutOfMemory("the device has no room for a batch")
    return ExecutionFailed(f"a batch failed: {kind}")
