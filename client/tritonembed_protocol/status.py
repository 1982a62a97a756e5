"""What a failed answer means: one row per gRPC status, and the words that distinguish Triton's failures.

gRPC's statuses stand here by their names, so that this module needs no gRPC.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class Status:
    """One gRPC status.

    error: the client's error for it. http: the HTTP status that stands for it, as in Triton. request_fault: the request
    is wrong, whichever server has it. suspicious: a healthy server hardly ever answers a request so.
    """

    error: str = "ServerError"
    http: int = 500
    request_fault: bool = False
    suspicious: bool = False


STATUSES: dict[str, Status] = {
    "INVALID_ARGUMENT": Status("InvalidArgumentError", 400, request_fault=True),
    "OUT_OF_RANGE": Status("InvalidArgumentError", 400, request_fault=True),
    "FAILED_PRECONDITION": Status("ServerError", 400),
    "UNAUTHENTICATED": Status("AuthenticationError", 401, suspicious=True),
    "PERMISSION_DENIED": Status("AuthenticationError", 403, suspicious=True),
    "NOT_FOUND": Status("ModelNotFoundError", 404, request_fault=True),
    "ALREADY_EXISTS": Status("ServerError", 409),
    "ABORTED": Status("ServerError", 409, suspicious=True),
    "RESOURCE_EXHAUSTED": Status("OverloadedError", 429),
    "CANCELLED": Status("CancelledError", 499, suspicious=True),
    "UNKNOWN": Status("ServerError", 500, suspicious=True),
    "INTERNAL": Status("ServerError", 500, suspicious=True),
    "DATA_LOSS": Status("ServerError", 500, suspicious=True),
    "UNIMPLEMENTED": Status("ServerError", 501, suspicious=True),
    "UNAVAILABLE": Status("UnavailableError", 503),
    "DEADLINE_EXCEEDED": Status("DeadlineExceededError", 504),
}


def status_of(code: str) -> Status:
    """The row of a gRPC status; a status that gRPC does not have is a server's error."""
    return STATUSES.get(code, _OTHER)


def code_of_refusal(http: int) -> str:
    """The gRPC status of a request that is refused with an HTTP status, for the counters."""
    return {401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND"}.get(http, "INVALID_ARGUMENT")


class Outcome(Enum):
    """How a request failed at a Triton server."""

    ANSWERED = "answered"
    """The server works; this is its answer to the request."""
    OVERLOAD = "overload"
    """Its queue is full."""
    NO_ROOM = "no room"
    """/dev/shm, which all servers of a machine share, is full."""
    EXPIRED = "expired"
    """The request's time ran out before its turn came."""
    BROKEN = "broken"
    """The server, or the connection to it, is gone: another server can answer."""
    STUB_DIED = "stub died"
    """One of its python processes is gone: what is in flight there hangs and will fail, too."""

    @property
    def is_broken(self) -> bool:
        """Whether the request can be sent to another server."""
        return self in (Outcome.BROKEN, Outcome.STUB_DIED)


def classify(code: str, details: str | None) -> Outcome:
    """The outcome of an answer. code: a gRPC status that does not come from a cancel on this side."""
    words = (details or "").lower()
    if code == "UNAVAILABLE":
        # Triton also has this status for a full queue and for an expired request: only the words distinguish them.
        if _has(words, _OVERLOAD):
            return Outcome.OVERLOAD
        return Outcome.EXPIRED if _has(words, _EXPIRED) else Outcome.BROKEN
    if code == "INTERNAL" and "stub process" in words and "not healthy" in words:
        return Outcome.STUB_DIED
    if code == "INTERNAL" and _NO_ROOM in words:
        return Outcome.NO_ROOM
    if code in ("INTERNAL", "UNKNOWN") and _has(words, _RESET):
        return Outcome.BROKEN
    if code == "NOT_FOUND" and _UNLOADED in words:
        # A server that ends unloads its models first, and still answers.
        return Outcome.BROKEN
    if code == "CANCELLED":
        # It was not cancelled here: a server cancels unanswered requests when it shuts down.
        return Outcome.BROKEN
    return Outcome.ANSWERED


def unreachable_deadline(details: str | None) -> str | None:
    """The engine's reason, with its estimate, if it refused a request at once because of its deadline."""
    found = (details or "").find(_UNREACHABLE)
    return None if found < 0 else (details or "")[found:]


def is_about_models(details: str | None) -> bool:
    """Whether an UNAVAILABLE is Triton's own answer about its models, not gRPC's about a connection.

    Triton also refuses to load a model with this status, unless it was started with --model-control-mode=explicit.
    """
    return _has((details or "").lower(), _OF_MODELS)


def _has(words: str, known: tuple[str, ...]) -> bool:
    return any(part in words for part in known)


_OTHER = Status()
# Of Triton's queue, and of the engine's queue behind it.
_OVERLOAD = ("maximum queue size", "queue is full", "sentences are waiting", "requests are waiting")
_EXPIRED = ("request timeout expired", "deadline passed")
_UNREACHABLE = "it would end after its deadline passed"
# Of Triton's python backend, whose requests and answers lie in /dev/shm. Smaller requests still go through.
_NO_ROOM = "failed to increase the shared memory pool"
# Of gRPC, under various statuses, for a connection that broke.
_RESET = ("rst_stream", "connection reset", "stream removed", "socket closed", "goaway", "transport closed")
_UNLOADED = "no available versions"
_OF_MODELS = ("load / unload is not allowed", _UNLOADED, "is not ready", "is not found")
