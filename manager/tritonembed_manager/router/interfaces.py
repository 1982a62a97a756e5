"""The interfaces of `serve`: the types through which its parts know servers and requests.

The parent process (control/) keeps the list of servers and their states. Workers route requests to these servers.
Endpoints (KServe gRPC and HTTP, OpenAI, Arctic) are adapters over one `Dispatcher`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any, Protocol

import grpc

from tritonembed_protocol.served import FIRST

Metadata = Sequence[tuple[str, str | bytes]]
"""gRPC's metadata: names and values."""


class ServerState(str, Enum):
    """The state of a server.

    Only READY servers get requests. If there is none, UNHEALTHY servers that answered their last request get them.
    """

    STARTING = "starting"
    READY = "ready"
    UNHEALTHY = "unhealthy"
    REFUSED = "refused"
    """Its vectors differ from those of the other servers."""
    DRAINING = "draining"
    UNLOADED = "unloaded"
    """Its model is not in memory: a request for it loads it (--max-loaded)."""
    FAILED = "failed"
    """It broke too often and stays down."""


NO_ADAPTERS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class ServerView:
    """A Triton server as workers see it. slot: its column in the load table, never reused while in use."""

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
    """The reason for a state other than READY, in one line."""
    deaths: int = 0
    """How often it died or stopped answering while READY."""
    space: str = ""
    """The embedding space of its vectors, by its last check; empty if it does not report it."""
    quantization_quality: float | None = None
    """In int8: the part of the ten nearest of the calibration texts that it keeps, as it reported."""
    ensemble: str = FIRST
    """Triton's name of the model. A server with several models has a view for each."""
    dimensions: int = 0
    """Dimensions of the model's vectors, by its last check; 0 before the first."""
    max_length: int | None = None
    """Tokens of the longest text; None if it is not known."""
    version: str = ""
    """The version of the model that it has; empty for attached servers."""
    weight: float = 100.0
    """The share of the model's requests that this version gets, in percent; the same for all of its servers."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """The digests of the model's adapters, by name."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, for the line to the workers and for `status --json`."""
        return {**asdict(self), "state": self.state.value}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ServerView":
        """The reverse of `to_json`."""
        return cls(**{**data, "state": ServerState(data["state"])})


class DispatchError(Exception):
    """A request that was not answered with vectors.

    code: gRPC status of the answer. message: safe to show. retry_after: seconds to wait before a retry (overload).
    """

    def __init__(self, code: grpc.StatusCode, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Caller:
    """A sender of requests. Callers share the servers' time.

    name: the tenant; without tenants, the connection, as address and port. The address alone would make one caller of
    all clients behind a proxy or NAT. weight: the caller's share in comparison with others. is_tenant: whether it
    shares no cached vectors with others.
    """

    name: str
    weight: float = 1.0
    is_tenant: bool = False


NOBODY = Caller("")
"""The caller of a request that was refused before its caller was determined."""


@dataclass(slots=True)
class Admission:
    """A caller's admitted request. It may be sent to the servers in parts."""

    deadline: float
    """The deadline of all parts, in seconds of the dispatcher's clock."""
    caller: Caller
    started: bool = False
    """Whether a part was sent to a server. The other parts then wait for a place instead of being refused."""
    tokens: int = 0
    """Tokens of the answers so far (`num_tokens`)."""
    model: str = ""
    """The ensemble to which it was sent last; empty before."""
    version: str | None = None
    """The version of the model for its messages, so that all its vectors are of one space; None before."""
    messages: int = 0
    """Sentences sent so far, to the same model."""
    sentences: int = 0
    """Sentences of the answers so far."""
    server: str = ""
    """The id of the server that answered last."""
    waited: float = 0.0
    """Seconds from its arrival to the sending of its first part."""
    at_server: float = 0.0
    """Seconds of the part that was at a server the longest."""


class Dispatcher(Protocol):
    """Sends requests to the servers: policy, admission, retries, deadlines."""

    async def infer(
        self,
        request: bytes,
        *,
        timeout: float | None,
        metadata: Metadata,
        caller: Caller,
        admitted: Admission | None = None,
    ) -> bytes:
        """Send an encoded ModelInferRequest to a server. Returns the encoded ModelInferResponse.

        timeout: the caller's remaining seconds; None means the manager's --forward-timeout. admitted: the admission of
        which this request is a part; its deadline and caller then count. Raises DispatchError. Cancelling the task
        frees its place at once.
        """

    def admitted(
        self, size: int, *, timeout: float | None, caller: Caller, work: int | None = None, model: str = ""
    ) -> AbstractContextManager[Admission]:
        """Admit a caller's request of `size` bytes that is sent in several parts. It ends with the `with` block.

        All parts are admitted, timed and counted as one request, and a drain waits for it. timeout: as for `infer`.
        work: the bytes of it that models read (`work_of` in envelope.py); None for all. model: Triton's name of its
        model or of a part; empty if it is not known. Raises DispatchError.
        """

    def refused(self, code: grpc.StatusCode) -> None:
        """Count a request that an endpoint refused before it called `infer` or `admitted`."""

    async def call(self, method: str, request: bytes, *, timeout: float | None, server: str | None = None) -> bytes:
        """Call another unary method of inference.GRPCInferenceService; request and answer are encoded messages.

        server: the id of a server; None means any ready server. Raises DispatchError.
        """

    def servers(self) -> list[ServerView]:
        """All servers, as the parent last sent them."""

    def serving(self, model: str = "") -> list[str]:
        """Ids of the servers that get requests. The endpoint is ready while the list is not empty.

        model: those with this model, by Triton's name of it or of a part; empty for those with any model.
        """


LOAD_HEADER = "x-model-load-seconds"
"""A header, or gRPC's trailing metadata, in the answer to a request that waited for its model."""


class LoadWait:
    """Whether a request waited until its model was loaded. The dispatcher notes it for the endpoint.

    A context variable holds the note, so all tasks of a request share it.
    seconds: the longest wait of the request's parts; None if none waited.
    """

    def __init__(self) -> None:
        self.seconds: float | None = None

    @property
    def headers(self) -> dict[str, str]:
        """The header; nothing if the request did not wait."""
        return {} if self.seconds is None else {LOAD_HEADER: f"{self.seconds:.3f}"}


_load_wait: ContextVar[LoadWait | None] = ContextVar("load_wait", default=None)


@contextmanager
def noting_load() -> Iterator[LoadWait]:
    """The wait of the request that the block handles."""
    found = LoadWait()
    token = _load_wait.set(found)
    try:
        yield found
    finally:
        _load_wait.reset(token)


def note_load(seconds: float) -> None:
    """Note how long the current request waited for its model."""
    found = _load_wait.get()
    if found is not None:
        found.seconds = max(seconds, found.seconds or 0.0)
