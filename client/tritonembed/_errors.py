"""The errors of the client; which gRPC status becomes which error is in tritonembed_protocol.status.

TritonEmbedError
├── InvalidArgumentError    (also ValueError)    the request is wrong: sending it again cannot help
├── ModelNotFoundError                           the server does not know the model
├── UnavailableError                             no server is there, or it cannot answer now
│   └── OverloadedError                          its queue is full: send again, later
├── DeadlineExceededError   (also TimeoutError)  the time of the call ran out
├── CancelledError                               the request was cancelled, and not by the caller
├── AuthenticationError                          credentials are missing, wrong or not sufficient
└── ServerError                                  the server failed, or its answer is wrong
"""

from __future__ import annotations

from typing import Any

import grpc

from tritonembed_protocol.status import STATUSES, Outcome, classify
from tritonembed_protocol.tls import tls_reason


class TritonEmbedError(Exception):
    """Base of every error that the client raises for a request.

    ``message`` is the server's own, if the server refused the request. ``code`` is the gRPC status of the answer, or
    None if there was none.
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
    """The server, or a proxy in front of it, refuses the caller's credentials."""


class ServerError(TritonEmbedError):
    """The server failed at the request, or its answer breaks the contract."""


STATUS_ERRORS: dict[grpc.StatusCode, type[TritonEmbedError]] = {
    grpc.StatusCode[code]: globals()[status.error] for code, status in STATUSES.items()
}


def error_from_status(code: grpc.StatusCode, details: str | None) -> TritonEmbedError:
    """The error for a failed answer. details: gRPC's message."""
    message = tls_reason(details) or details or f"the server answered {code.name} without a message"
    outcome = classify(code.name, details)
    if outcome is Outcome.OVERLOAD:
        return OverloadedError(message, code)
    if outcome is Outcome.EXPIRED:
        return DeadlineExceededError(message, code)
    return STATUS_ERRORS.get(code, ServerError)(message, code)


def error_from_rpc(error: grpc.RpcError) -> TritonEmbedError:
    """The error for gRPC's own, of a blocking or an asyncio call."""
    status: Any = error  # every RpcError of a call has both methods, but gRPC declares them on other classes
    return error_from_status(status.code(), status.details())
