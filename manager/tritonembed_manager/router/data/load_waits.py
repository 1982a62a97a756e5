"""Whether a request waited until its model was loaded: an endpoint asks for it, the dispatcher tells it.

A context variable holds what is told. The tasks of a request share it, whichever of them waited.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

HEADER = "x-model-load-seconds"
"""Of the answer to a request that waited for its model, in a header or in gRPC's trailing metadata."""


class LoadWait:
    """seconds: the longest wait of the request's parts; None if none waited."""

    def __init__(self) -> None:
        self.seconds: float | None = None

    @property
    def headers(self) -> dict[str, str]:
        """The header; nothing if the request did not wait."""
        return {} if self.seconds is None else {HEADER: f"{self.seconds:.3f}"}


_current: ContextVar[LoadWait | None] = ContextVar("load_wait", default=None)


@contextmanager
def noting() -> Iterator[LoadWait]:
    """The wait of the request that is handled in the block."""
    found = LoadWait()
    token = _current.set(found)
    try:
        yield found
    finally:
        _current.reset(token)


def note(seconds: float) -> None:
    """The current request waited so long for its model."""
    found = _current.get()
    if found is not None:
        found.seconds = max(seconds, found.seconds or 0.0)
