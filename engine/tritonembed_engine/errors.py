"""The engine's exceptions.

    EmbedError
    ├── InvalidArgument    the request is wrong: INVALID_ARGUMENT, and only this request fails
    ├── DeadlineExceeded   its deadline passed before its turn: UNAVAILABLE at Triton, as Triton's own queue answers
    │   └── DeadlineUnreachable   … or would pass before its end, at the measured speed
    ├── Abandoned          its client is gone: CANCELLED
    ├── Overloaded         the engine's queue is full: UNAVAILABLE
    ├── ExecutionFailed    a batch failed for a reason that is not the request's: INTERNAL
    │   └── OutOfMemory    … and smaller ones may succeed
    ├── EngineDead         the engine is closed, or its device is lost: UNAVAILABLE
    │   └── DeviceLost     the process can't use the device any more and has to be started again
    └── ModelError         the model cannot be loaded or is not an embedding model: start-up stops

No message holds the text of a request, a path or a traceback: they reach clients and logs.
"""


class EmbedError(Exception):
    """Base of everything the engine raises on purpose."""


class InvalidArgument(EmbedError):
    """A request broke the contract. `name` is the tensor or parameter at fault; the message names the limit."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name}: {problem}")
        self.name = name


class DeadlineExceeded(EmbedError):
    """The request's deadline passed while it waited; nothing more is computed for it."""


class DeadlineUnreachable(DeadlineExceeded):
    """At the measured speed the request's deadline would pass before its end; nothing was computed for it."""


class Abandoned(EmbedError):
    """The request's client is gone; nothing more is computed for it."""


class Overloaded(EmbedError):
    """No room in the engine's queue."""


class ExecutionFailed(EmbedError):
    """The forward pass of a batch failed; later batches may succeed."""


class OutOfMemory(ExecutionFailed):
    """The device had no room for the batch."""


class EngineDead(EmbedError):
    """The engine computes nothing any more."""


class DeviceLost(EngineDead):
    """A CUDA error that poisons the context: whatever this process asks of the GPU from now on fails."""


class ModelError(EmbedError):
    """The model can't be served; one readable line."""
