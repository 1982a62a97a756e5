"""The engine's exceptions.

    EmbedError
    ├── InvalidArgument    the request is wrong: INVALID_ARGUMENT, and only this request fails
    ├── DeadlineExceeded   its deadline passed before its turn: UNAVAILABLE, as in Triton's own queue
    │   └── DeadlineUnreachable   … or would pass before its end, at the measured speed
    ├── Abandoned          its client is gone: CANCELLED
    ├── Overloaded         the engine's queue is full: UNAVAILABLE
    ├── ExecutionFailed    a batch failed, and not because of the request: INTERNAL
    │   └── OutOfMemory    … and smaller batches may succeed
    ├── EngineDead         the engine is closed, or its device is lost: UNAVAILABLE
    │   └── DeviceLost     the process can't use the device any more and has to be restarted
    └── ModelError         the model cannot be loaded or is not an embedding model: start-up stops

No message holds the text of a request, a path or a traceback: they reach clients and logs.
"""

import re

LONGEST = 240
"""Characters of a reason; vLLM may list every architecture that it knows."""

_SENTENCE_END = re.compile(r"\.\s+(?=[A-Z])")
_PATH = re.compile(r"(?<![\w./-])(?:[a-z]+:/+|~/|\.{1,2}/|/)(?:[^\s/,='\"`]+/)*(?=[^\s/,='\"`])")
"""A path or URL without its last part."""


class EmbedError(Exception):
    """Base of the engine's own exceptions."""


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
    """The engine is closed, or failed for good."""


class DeviceLost(EngineDead):
    """A CUDA error that poisons the context: every further GPU call of this process fails."""


class ModelError(EmbedError):
    """The model can't be served; one readable line."""


def reason_of(error: BaseException, folder: str = "") -> str:
    """The first sentence of an exception's text, without paths. If the text is no sentence, its type comes first.

    folder: the model's, which may hold blanks; only its last part is kept. A name on the hub is kept whole.
    """
    line = _first_line(error)
    if folder.startswith("/"):
        line = line.replace(folder, folder.rstrip("/").rpartition("/")[2])
    line = _SENTENCE_END.split(_PATH.sub("", line), maxsplit=1)[0].rstrip(". ")
    if len(line) > LONGEST:
        line = line[: LONGEST - 1] + "…"
    kind = type(error).__name__
    # These two are raised with a sentence; the text of other types (KeyError: 'x', error: unpack …) is not one.
    return line if line and isinstance(error, ValueError | RuntimeError) else ": ".join(filter(None, (kind, line)))


def _first_line(error: BaseException) -> str:
    # pydantic, which checks vLLM's configuration, names the problem in its third line.
    listed = getattr(error, "errors", None)
    if callable(listed) and (problems := listed()):
        first = problems[0]
        where = ".".join(map(str, first["loc"][:1]))
        return ": ".join(filter(None, (where, first["msg"].removeprefix("Value error, "))))
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")
