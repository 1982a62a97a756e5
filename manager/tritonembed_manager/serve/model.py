"""What the parts of `serve` tell each other about servers and requests.

The parent process (control/) decides what the servers are and how they do; workers route to them. Endpoints (KServe
gRPC and HTTP, OpenAI, Arctic) are adapters over one `Dispatcher`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, Protocol

import grpc


class ServerState(str, Enum):
    """Where a server stands. Only READY ones get requests (all but REFUSED and FAILED under the panic threshold)."""

    STARTING = "starting"
    READY = "ready"
    UNHEALTHY = "unhealthy"
    REFUSED = "refused"
    """Its vectors differ from those of the other servers."""
    DRAINING = "draining"
    FAILED = "failed"
    """Restarted too often; left down."""


@dataclass(frozen=True)
class ServerView:
    """A Triton server as workers see it. slot: its column in the load table, never reused while it is in use."""

    id: str
    slot: int
    address: str
    """host:port of gRPC."""
    http_address: str | None
    metrics_address: str | None
    state: ServerState
    launched: bool
    restarts: int = 0
    replicas: int = 1
    why: str = ""
    """The reason of a state other than READY, in one line."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, for the line to the workers and for `status --json`."""
        return {**asdict(self), "state": self.state.value}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ServerView":
        """The other way round."""
        return cls(**{**data, "state": ServerState(data["state"])})


class DispatchError(Exception):
    """A request that was not answered with vectors.

    code: gRPC status to answer with. message: safe to show. retry_after: seconds after which to try again (overload).
    """

    def __init__(self, code: grpc.StatusCode, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after = retry_after


class Dispatcher(Protocol):
    """Sends requests to the servers: policy, admission, retries, deadlines."""

    async def infer(
        self, request: bytes, *, timeout: float | None, metadata: Sequence[tuple[str, str | bytes]]
    ) -> bytes:
        """An encoded ModelInferRequest to one of the servers; its encoded ModelInferResponse.

        timeout: seconds left to the caller; None: the manager's own --forward-timeout. Raises DispatchError.
        Cancelling the task frees its place at once.
        """

    async def call(self, method: str, request: bytes, *, timeout: float | None, server: str | None = None) -> bytes:
        """Another unary method of inference.GRPCInferenceService, encoded both ways, on any ready server or on the one
        with that id. Raises DispatchError."""

    def servers(self) -> list[ServerView]:
        """All servers, as the parent last said."""
