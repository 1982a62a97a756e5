"""What the parts of `serve` tell each other about servers and requests.

The parent process (control/) decides what the servers are and how they do; workers route to them. Endpoints (KServe
gRPC and HTTP, OpenAI, Arctic) are adapters over one `Dispatcher`.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, Protocol

import grpc


class ServerState(str, Enum):
    """Where a server stands. Only READY ones get requests; if there is none, UNHEALTHY ones whose last was answered."""

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


@dataclass(slots=True)
class Ticket:
    """A caller's request that was taken in, and may be sent to the servers in parts."""

    deadline: float
    """Of all its parts, in seconds of the dispatcher's clock."""
    started: bool = False
    """Whether a part of it was sent to a server: the others then wait for a place, where they would be refused."""


class Dispatcher(Protocol):
    """Sends requests to the servers: policy, admission, retries, deadlines."""

    async def infer(
        self,
        request: bytes,
        *,
        timeout: float | None,
        metadata: Sequence[tuple[str, str | bytes]],
        ticket: Ticket | None = None,
    ) -> bytes:
        """An encoded ModelInferRequest to one of the servers; its encoded ModelInferResponse.

        timeout: seconds left to the caller; None: the manager's own --forward-timeout. ticket: what it is a part of,
        which has a deadline of its own. Raises DispatchError. Cancelling the task frees its place at once.
        """

    def admitted(self, size: int, *, timeout: float | None) -> AbstractContextManager[Ticket]:
        """Take in, until the block is left, a caller's request of so many bytes that becomes several for the servers.

        It is admitted, timed and counted as one, and a drain waits for it. timeout: as for `infer`. Raises
        DispatchError.
        """

    async def call(self, method: str, request: bytes, *, timeout: float | None, server: str | None = None) -> bytes:
        """Another unary method of inference.GRPCInferenceService, encoded both ways, on any ready server or on the one
        with that id. Raises DispatchError."""

    def servers(self) -> list[ServerView]:
        """All servers, as the parent last said."""

    def serving(self) -> list[str]:
        """Ids of the servers that requests go to; while there is one, this endpoint is ready."""
