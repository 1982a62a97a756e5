"""What a failed answer of a Triton server says about the request, and about the server."""

from enum import Enum

import grpc

_OVERLOAD = ("maximum queue size", "queue is full", "sentences are waiting", "requests are waiting")
_EXPIRED = ("request timeout expired", "deadline passed")
_UNREACHABLE = "it would end after its deadline passed"
_OF_MODELS = ("load / unload is not allowed", "no available versions", "is not ready", "is not found")
_RESET = ("rst_stream", "connection reset", "stream removed", "socket closed", "goaway", "transport closed")


class Outcome(Enum):
    """How a request failed at a server."""

    ANSWERED = "answered"
    """The server works; this is its answer to the request."""
    OVERLOAD = "overload"
    """Its queue is full."""
    EXPIRED = "expired"
    """The time of the request was over before its turn came."""
    BROKEN = "broken"
    """The server, or the connection to it, is gone: another one can answer."""
    STUB_DIED = "stub died"
    """One of its python processes is gone: what is in flight there hangs and will fail, too."""


def classify(code: grpc.StatusCode, details: str | None) -> Outcome:
    """The status of an answer, as gRPC gave it. It must not be one that came of a cancel on this side."""
    words = (details or "").lower()
    if code is grpc.StatusCode.UNAVAILABLE:
        # Triton has this status for a full queue and for an expired request, too: only the words tell them apart.
        if any(known in words for known in _OVERLOAD):
            return Outcome.OVERLOAD
        if any(known in words for known in _EXPIRED):
            return Outcome.EXPIRED
        return Outcome.BROKEN
    if code is grpc.StatusCode.INTERNAL and "stub process" in words and "not healthy" in words:
        return Outcome.STUB_DIED
    if code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN) and any(known in words for known in _RESET):
        return Outcome.BROKEN
    if code is grpc.StatusCode.CANCELLED:
        # Nobody here cancelled it: the server did, as it does with what is in flight when it is shut down.
        return Outcome.BROKEN
    return Outcome.ANSWERED


def unreachable(details: str | None) -> str | None:
    """The engine's reason, where it refused a request at once because of its deadline: that names the estimate."""
    found = (details or "").find(_UNREACHABLE)
    return None if found < 0 else (details or "")[found:]


def says_why(details: str | None) -> bool:
    """Whether an UNAVAILABLE is Triton's own answer about its models, not gRPC's about a connection: Triton refuses to
    load a model with this status, too, unless it was started with --model-control-mode=explicit."""
    words = (details or "").lower()
    return any(known in words for known in _OF_MODELS)
