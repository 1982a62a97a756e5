"""The errors of the client, and the one table from gRPC status to error.

TritonEmbedError
├── InvalidArgumentError    (also ValueError)    the request is wrong: sending it again cannot help
├── ModelNotFoundError                           the server does not know the model
├── UnavailableError                             no server there, or it cannot answer now
│   └── OverloadedError                          its queue is full: send again, later
├── DeadlineExceededError   (also TimeoutError)  the time of the call ran out
├── CancelledError                               somebody other than the caller cancelled the request
├── AuthenticationError                          credentials missing, wrong or not enough
└── ServerError                                  the server failed, or answered what cannot be read
"""

from __future__ import annotations

from typing import Any

import grpc


class TritonEmbedError(Exception):
    """Base of every error that the client raises for a request.

    ``message`` is what went wrong, in the server's words where it came from there; ``code`` is the gRPC status of the
    answer, or None where nothing was sent.
    """

    def __init__(self, message: str, code: grpc.StatusCode | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.code)


class InvalidArgumentError(TritonEmbedError, ValueError):
    """A text, token id or parameter is not allowed; the message names it and the limit it broke."""


class ModelNotFoundError(TritonEmbedError):
    """The server does not know the model, or not in this version."""


class UnavailableError(TritonEmbedError):
    """No server answers at the target, or the model is not ready."""


class OverloadedError(UnavailableError):
    """The server sheds load: a queue is full, or a quota is used up."""


class DeadlineExceededError(TritonEmbedError, TimeoutError):
    """The ``timeout`` of the call passed before all answers were there."""


class CancelledError(TritonEmbedError):
    """The request was cancelled by the server, a proxy, or the client being closed."""


class AuthenticationError(TritonEmbedError):
    """The server or a proxy before it refuses the caller's credentials."""


class ServerError(TritonEmbedError):
    """The server failed while it worked on the request, or its answer breaks the contract."""


STATUS_ERRORS: dict[grpc.StatusCode, type[TritonEmbedError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgumentError,
    grpc.StatusCode.NOT_FOUND: ModelNotFoundError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.CANCELLED: CancelledError,
    grpc.StatusCode.UNAUTHENTICATED: AuthenticationError,
    grpc.StatusCode.PERMISSION_DENIED: AuthenticationError,
    grpc.StatusCode.INTERNAL: ServerError,
    grpc.StatusCode.UNKNOWN: ServerError,
    grpc.StatusCode.DATA_LOSS: ServerError,
    grpc.StatusCode.UNIMPLEMENTED: ServerError,
    grpc.StatusCode.FAILED_PRECONDITION: ServerError,
    grpc.StatusCode.ABORTED: ServerError,
    grpc.StatusCode.ALREADY_EXISTS: ServerError,
}

# Triton has one status for these and for a server that is gone: only the words of its queue, and of the engine's
# queue behind it, tell them apart.
UNAVAILABLE_MESSAGES: tuple[tuple[str, type[TritonEmbedError]], ...] = (
    ("maximum queue size", OverloadedError),
    ("queue is full", OverloadedError),
    ("sentences are waiting", OverloadedError),
    ("requests are waiting", OverloadedError),
    ("request timeout expired", DeadlineExceededError),
    ("deadline passed", DeadlineExceededError),
)


def error_from_status(code: grpc.StatusCode, details: str | None) -> TritonEmbedError:
    """The error for a failed answer; ``details`` is gRPC's message."""
    message = details or f"the server answered {code.name} without a message"
    kind = STATUS_ERRORS.get(code, ServerError)
    if code is grpc.StatusCode.UNAVAILABLE:
        lowered = message.lower()
        kind = next((known for words, known in UNAVAILABLE_MESSAGES if words in lowered), kind)
    return kind(message, code)


def error_from_rpc(error: grpc.RpcError) -> TritonEmbedError:
    """The error for what gRPC raised, in a blocking or an asyncio call."""
    status: Any = error  # every RpcError of an RPC has both methods, though gRPC declares them on other classes
    return error_from_status(status.code(), status.details())
