"""A request on its way: its bytes, how long it has, where it has been."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc

from tritonembed_manager.serve.forward import Metadata, forwarded
from tritonembed_manager.serve.infer_message import WrongMessage, asks_for_timeout, read_timeout, with_timeout
from tritonembed_manager.serve.model import DispatchError, Ticket
from tritonembed_manager.serve.server import Incarnation

_LONGEST_S = 1e9
"""Thirty years: what is far beyond does not fit into gRPC's clock."""
EXPIRED = "the deadline passed before a server could answer"


@dataclass(slots=True)
class Request:
    """Times are those of the dispatcher's clock, in seconds."""

    message: bytes
    metadata: Metadata | None
    """What of it goes to the server."""
    ticket: Ticket
    """What it is, or is a part of; at its deadline the caller stops waiting."""
    start_by: float
    """The deadline, or the caller's KServe `timeout` where that is sooner; nothing is begun after it."""
    timed: bool
    """Whether Triton is told the time: a `timeout` of the wrong type is left to Triton's own answer."""
    tried: list[Incarnation] = field(default_factory=list)

    def timed_message(self, now: float) -> bytes:
        """The message to send now, with what is left as `timeout`. Raises DispatchError when nothing is."""
        left = self.start_by - now
        if left <= 0:
            raise DispatchError(grpc.StatusCode.DEADLINE_EXCEEDED, EXPIRED)
        return with_timeout(self.message, left) if self.timed else self.message


def prepare(message: bytes, metadata: Sequence[tuple[str, str | bytes]], now: float, ticket: Ticket) -> Request:
    """Raises DispatchError for bytes that are no request."""
    start_by = ticket.deadline
    timed = True
    if asks_for_timeout(message):
        try:
            asked = read_timeout(message)
        except WrongMessage:
            raise DispatchError(grpc.StatusCode.INVALID_ARGUMENT, "these bytes are no ModelInferRequest") from None
        except LookupError:
            asked, timed = None, False
        if asked is not None:
            start_by = min(start_by, now + asked)
    return Request(message, forwarded(metadata) if metadata else None, ticket, start_by, timed)


def seconds(timeout: float | None, default: float) -> float:
    """A timeout as gRPC can take it."""
    asked = default if timeout is None else timeout
    return min(asked, _LONGEST_S) if math.isfinite(asked) else _LONGEST_S
