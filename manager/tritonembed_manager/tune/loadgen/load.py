"""A load on a server: its requests, the way they are sent, and the samples.

The sender of KServe v2 sends serialized requests through gRPC for asyncio, with as little client CPU as Python allows.
"""

import asyncio
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2

from tritonembed_manager.server.client_tls import ClientTls, open_channel
from tritonembed_protocol.framing import frame

SATURATED = 0.9
"""If a thread ran or waited for a core for more than this share of the time, it limits the load itself."""


class LoadError(Exception):
    """The load could not be run to its end; the message is one line. `exit_code`: of a command that fails with it."""

    exit_code = 1


class RequestFailedError(Exception):
    """A request without an answer. kind: a few words under which it is counted; the message is the server's."""

    def __init__(self, kind: str, message: str = "") -> None:
        super().__init__(message or kind)
        self.kind = kind


class LoadTransport(Protocol):
    """Open connections to a server, of one event loop."""

    async def send(self, payload: bytes, number: int) -> bytes:
        """Return the answer's bytes. number: of the request, to spread requests over connections.

        Raises RequestFailedError.
        """

    async def close(self) -> None:
        """Drop the connections at once."""


class Sender(Protocol):
    """How payloads reach a server; it is pickled to the client processes."""

    def connections(self, concurrency: int | None) -> int:
        """Connections for this many requests in flight; None for an open loop, which has no bound."""

    def open(self, connections: int, timeout: float) -> LoadTransport:
        """Call it inside the event loop that will use it. timeout: seconds per request."""


@dataclass(frozen=True)
class Work:
    """Requests to send. tokens: of each request.

    find_fault: from a request's number and its answer to what is wrong with the answer, or an empty text; None: answers
    are not checked. compared: numbers of the requests whose vectors it compares.
    """

    sender: Sender
    payloads: Sequence[bytes]
    tokens: Sequence[int] = ()
    find_fault: Callable[[int, bytes], str] | None = None
    compared: Container[int] = ()


@dataclass(frozen=True)
class Load:
    """How requests are sent, by all processes together or (share) by one of them.

    Closed loop: `concurrency` in flight. Open loop: `rate` per second, at random moments, whatever comes back.
    Either `requests` are measured, or those of `duration` seconds. warm_up: seconds before that, not measured.
    timeout: seconds per request.
    """

    concurrency: int | None
    rate: float | None
    requests: int | None
    duration: float | None
    warm_up: float
    timeout: float
    seed: int

    def shares(self, processes: int) -> list["Load"]:
        """A process's share, for each process."""

        def part(total: int | None, number: int) -> int | None:
            return None if total is None else total // processes + (number < total % processes)

        return [
            Load(
                part(self.concurrency, number),
                None if self.rate is None else self.rate / processes,
                part(self.requests, number),
                self.duration,
                self.warm_up,
                self.timeout,
                self.seed * 1000 + number,
            )
            for number in range(processes)
        ]


@dataclass(frozen=True)
class ThreadUse:
    """A process over the measured time. busy: the share of time in which its busiest thread ran or waited."""

    cpu_seconds: float
    busy: float


@dataclass
class Samples:
    """The measurements of one process, or of all.

    finished: on the machine's monotonic clock. latencies: in seconds. late: seconds from the moment at which a request
    of an open loop was due to its sending. faults: what was wrong with some answers; `wrong` counts all of them.
    """

    finished: npt.NDArray[np.float64]
    latencies: npt.NDArray[np.float64]
    late: npt.NDArray[np.float64]
    tokens: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    wrong: int = 0
    faults: list[str] = field(default_factory=list)
    compared: int = 0
    use: tuple[ThreadUse, ...] = ()

    @staticmethod
    def merged(parts: Sequence["Samples"]) -> "Samples":
        """The samples of all processes as one."""
        whole = Samples(
            np.concatenate([part.finished for part in parts]),
            np.concatenate([part.latencies for part in parts]),
            np.concatenate([part.late for part in parts]),
        )
        for part in parts:
            whole.tokens += part.tokens
            whole.wrong += part.wrong
            whole.compared += part.compared
            whole.faults += part.faults
            whole.use += part.use
            for kind, count in part.errors.items():
                whole.errors[kind] = whole.errors.get(kind, 0) + count
            whole.messages |= part.messages
        return whole


@dataclass(frozen=True)
class LoadResult:
    """seconds: of the measured time. samples: what all client processes saw in it."""

    samples: Samples
    seconds: float

    @staticmethod
    def of(samples: Samples, begin: float, end: float, load: Load) -> "LoadResult":
        """begin, end: of the measured time, on the machine's monotonic clock.

        A number of requests lasts until the last answer; so does an open loop, which also waits for all that was due.
        """
        last = float(samples.finished.max()) if len(samples.finished) else end
        if load.rate is not None:
            return LoadResult(samples, max(last, min(end, begin + (load.duration or 0))) - begin)
        return LoadResult(samples, max((last if load.requests is not None else end) - begin, 1e-9))

    @property
    def requests(self) -> int:
        """Answered requests."""
        return len(self.samples.latencies)

    @property
    def is_telling(self) -> bool:
        """Whether anything came back: answers or errors in the measured time, or a wrong answer at any time."""
        return bool(self.requests or self.samples.errors or self.samples.wrong)

    @property
    def requests_per_second(self) -> float:
        """Answered requests per second."""
        return self.requests / self.seconds if self.seconds > 0 else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens of answered requests per second, counted by the tokenizer."""
        return self.samples.tokens / self.seconds if self.seconds > 0 else 0.0

    def latency_ms(self, percent: float) -> float:
        """A percentile; 100 is the maximum."""
        return float(np.percentile(self.samples.latencies, percent)) * 1e3 if self.requests else float("nan")

    @property
    def late_p99_ms(self) -> float:
        """How late an open loop sent its requests."""
        return float(np.percentile(self.samples.late, 99)) * 1e3 if len(self.samples.late) else 0.0

    @property
    def client_cpu_seconds(self) -> float:
        """CPU seconds of all client processes."""
        return sum(use.cpu_seconds for use in self.samples.use)

    @property
    def busiest_client(self) -> float:
        """The share of time in which the busiest thread of any client process ran or waited for a core."""
        return max((use.busy for use in self.samples.use), default=0.0)

    @property
    def is_client_saturated(self) -> bool:
        """Whether the figures may be the client's own limit."""
        return self.busiest_client >= SATURATED


ENSEMBLE = "embedding"
METHOD = "/inference.GRPCInferenceService/ModelInfer"
CONNECTION_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Several processes, and several connections in each: otherwise gRPC shares one.
    ("grpc.use_local_subchannel_pool", 1),
]
REQUESTS_PER_CONNECTION = 32
OPEN_LOOP_CONNECTIONS = 8


def encode_request(texts: Sequence[str], model: str = ENSEMBLE, request_id: str = "") -> bytes:
    """Return a serialized ModelInferRequest for these texts."""
    request = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    request.inputs.add(name="text", datatype="BYTES", shape=[len(texts), 1])
    request.raw_input_contents.append(frame([text.encode() for text in texts]))
    serialized: bytes = request.SerializeToString()
    return serialized


@dataclass(frozen=True)
class GrpcSender:
    """Sends raw bytes to `method` of the server at host:port, or over TLS at grpcs://host:port."""

    server: str
    method: str = METHOD
    tls: ClientTls = field(default_factory=ClientTls)
    api_key: str | None = field(default=None, repr=False)

    def connections(self, concurrency: int | None) -> int:
        """See Sender."""
        return OPEN_LOOP_CONNECTIONS if concurrency is None else -(-concurrency // REQUESTS_PER_CONNECTION)

    def open(self, connections: int, timeout: float) -> "GrpcTransport":
        """See Sender."""
        return GrpcTransport(self.server, self.method, connections, timeout, self.tls, self.api_key)


class GrpcTransport:
    """Several connections, because the throughput of one is limited."""

    def __init__(
        self, server: str, method: str, connections: int, timeout: float, tls: ClientTls, api_key: str | None = None
    ) -> None:
        self._channels = open_channels(server, connections, tls)
        self._calls: list[Any] = [channel.unary_unary(method, None, None) for channel in self._channels]
        self._timeout = timeout
        self._metadata = key_metadata(api_key)

    async def send(self, payload: bytes, number: int) -> bytes:
        """See Transport."""
        try:
            answer: bytes = await self._calls[number % len(self._calls)](
                payload, timeout=self._timeout, metadata=self._metadata
            )
        except grpc.aio.AioRpcError as error:
            raise RequestFailedError(error.code().name, error.details() or "") from None
        return answer

    async def close(self) -> None:
        """See Transport."""
        await asyncio.gather(*(channel.close(None) for channel in self._channels))


def key_metadata(api_key: str | None) -> tuple[tuple[str, str], ...]:
    """A tenant's key as gRPC metadata."""
    return (("authorization", f"Bearer {api_key}"),) if api_key else ()


def open_channels(server: str, count: int, tls: ClientTls) -> Sequence[grpc.aio.Channel]:
    """Channels that share no connection."""
    return [open_channel(server, tls, CONNECTION_OPTIONS) for _ in range(count)]
