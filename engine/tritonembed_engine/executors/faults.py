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
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        _give_back_what_is_cached()
        return OutOfMemory("the device has no room for a batch")
    # An error poisons the context when even waiting for the device fails (CUDA's "sticky" errors).
    if torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return DeviceLost(f"the GPU is lost to this process ({kind})")
    return ExecutionFailed(f"a batch failed: {kind}")


def _give_back_what_is_cached() -> None:
    """Blocks cached for larger batches are in the way of smaller ones."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
