"""One Triton server as a worker sees it: its connections, its requests in flight, and their recent outcomes."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from tritonembed_manager.router.data.load_table import LoadRow
from tritonembed_manager.router.data.outliers import IN_A_ROW, SMALL_BYTES, Outlier
from tritonembed_manager.router.data.window import Window
from tritonembed_manager.router.interfaces import Metadata, ServerState, ServerView
from tritonembed_manager.server.client_tls import ClientTls, open_channel
from tritonembed_protocol.policies import RetryBudget
from tritonembed_protocol.tls import without_scheme

SERVICE = "inference.GRPCInferenceService"
_CHANNELS = 2
"""Connections per server. With only one, every answer would share one window and one lock."""
Call = Any
"""A grpc.aio.UnaryUnaryCall[bytes, bytes]."""

_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Otherwise all channels of a process to an address would share one connection, and its state after a failure.
    ("grpc.use_local_subchannel_pool", 1),
    # Triton treats more frequent pings on an idle connection as an attack.
    ("grpc.keepalive_time_ms", 300_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # No proxy is used between here and a server, whatever the environment sets for HTTP.
    ("grpc.enable_http_proxy", 0),
    # The dispatcher retries, on another server.
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # The time for one attempt to connect. If a busy machine exceeded it, a server that is well would count as broken.
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class Forward:
    """Channels to one address, used in turn. They belong to the event loop in which they are made.

    `done` must follow each `infer`. `retire` closes the channels once nothing is outstanding.
    """

    def __init__(self, address: str, tls: ClientTls) -> None:
        self._channels = [open_channel(address, tls, _OPTIONS) for _ in range(_CHANNELS)]
        self._infer: list[Callable[..., Call]] = [
            channel.unary_unary(f"/{SERVICE}/ModelInfer", None, None) for channel in self._channels
        ]
        self._turn = 0
        self._outstanding = 0
        self._retired = False
        self._closing: asyncio.Task[None] | None = None

    def infer(self, message: bytes, timeout: float, metadata: Metadata | None) -> Call:
        """Start a ModelInfer. The caller awaits the call for its bytes, or cancels it."""
        self._turn = turn = (self._turn + 1) % len(self._infer)
        call = self._infer[turn](message, timeout=timeout, metadata=metadata)
        self._outstanding += 1
        return call

    async def call(self, method: str, message: bytes, timeout: float) -> bytes:
        """Call another unary method. Raises grpc.aio.AioRpcError."""
        self._outstanding += 1
        try:
            answer = await self._channels[0].unary_unary(f"/{SERVICE}/{method}", None, None)(message, timeout=timeout)
            return bytes(answer)
        finally:
            self.done()

    def done(self) -> None:
        """A call has ended, with or without an answer."""
        self._outstanding -= 1
        if self._retired:
            self.retire()

    def retire(self) -> None:
        """Close the channels once nothing is outstanding. Nothing new may be sent afterwards."""
        self._retired = True
        if not self._outstanding and self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())

    async def closed(self) -> None:
        """After `retire`, with nothing outstanding: wait until the channels are closed."""
        if self._closing is not None:
            await self._closing

    async def _close(self) -> None:
        for channel in self._channels:
            await channel.close(None)


Incarnation = tuple[str, int]
"""A server from one start of its process to the next. A request is never sent to the same incarnation twice."""


class Attempt:
    """A request in flight at a server."""

    __slots__ = (
        "alone",
        "began",
        "call",
        "counted",
        "died",
        "done",
        "forward",
        "incarnation",
        "seen_breaks",
        "seen_clears",
        "seen_deaths",
        "slot",
        "space",
        "work",
    )

    def __init__(self, call: Any, server: "Upstream", work: int, counted: int, began: float, *, alone: bool) -> None:
        self.call = call
        self.done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        """The result is True if there is an answer, False if the request must be sent elsewhere."""
        self.died = False
        """Whether the request is sent elsewhere because the server may have died."""
        self.began = began
        self.space = ""
        """The embedding space that the server has to have."""
        self.alone = alone
        """Whether the request holds the server's lane (failover.py)."""
        self.forward = server.forward
        self.slot = server.view.slot
        self.work = work
        self.counted = counted
        """The part of the work that fills the server's window."""
        self.incarnation = server.incarnation
        self.seen_breaks = server.breaks
        self.seen_deaths = server.view.deaths
        self.seen_clears = server.clears

    def finished(self, _call: Any) -> None:
        """gRPC's callback at the end of the call."""
        if not self.done.done():
            self.done.set_result(True)


class Upstream:
    """A server of the pool. Policies read its `key` and `load`."""

    def __init__(
        self,
        view: ServerView,
        row: LoadRow,
        clock: Callable[[], float] = time.monotonic,
        tls: ClientTls = ClientTls(),  # noqa: B008 - it is frozen
    ) -> None:
        self.view = view
        self._tls = tls
        self.clock = clock
        self.outlier = Outlier(clock())
        self.window = Window(view.replicas, clock)
        self.budget = RetryBudget(least=2 * IN_A_ROW)
        """Per server, so that a server that breaks all the time does not use up the budget of the others."""
        self.key = view.id
        self._row = row
        self._table = row.table
        self.forward = Forward(view.address, tls)
        self.attempts: set[Attempt] = set()
        self.incarnation: Incarnation = (view.id, 0)
        """The current incarnation; it changes when the server is started again."""
        self.breaks = 0
        """How often the server was found broken. A request sent before the last time was in flight when it broke."""
        self.clears = 0
        """How often a health check found the server well after a suspicion."""
        self.ejected: object | None = None
        """Set while the server gets no requests; a new object each time."""
        self.ejected_until = 0.0
        """The end of its ejection as an outlier (outliers.py); a health check does not end it sooner."""
        self.breaks_in_a_row = 0
        """Breaks without an answer between them."""
        self._lane = False
        self.answers = view.state is ServerState.READY
        """Whether the last request was answered, with or without success; False for a server that was never ready."""

    @property
    def load(self) -> float:
        """Bytes of text outstanding at the server per replica, from all workers."""
        return self._table.work(self.view.slot) / self.view.replicas

    @property
    def rate(self) -> float:
        """Bytes of requests per second that it answered when it was last busy, by any worker; 0 if it never was."""
        return self._table.rate(self.view.slot)

    def show_rate(self) -> None:
        """Show the rate that this worker measured to the others."""
        self._row.measured(self.view.slot, self.window.rate)

    @property
    def in_flight(self) -> int:
        """Requests outstanding at the server, from all workers."""
        return self._table.in_flight(self.view.slot)

    @property
    def is_open(self) -> bool:
        """Whether the server may receive one more request: during a trial, only one at a time."""
        return not (self.outlier.trial and self.attempts)

    def take_lane(self) -> bool:
        """Take the server's lane for a request that goes alone (failover.py); False if the lane is taken."""
        if not self._lane:
            self._lane = self._table.try_lane(self.view.slot)
            return self._lane
        return False

    def leave_lane(self) -> None:
        self._lane = False
        self._table.leave_lane(self.view.slot)

    def oldest(self) -> float | None:
        """When the oldest small request in flight was sent; None if there is none."""
        return min((attempt.began for attempt in self.attempts if attempt.work <= SMALL_BYTES), default=None)

    def begin(
        self,
        message: bytes,
        timeout: float,
        metadata: Metadata | None,
        work: int,
        counted: int | None = None,
        *,
        alone: bool = False,
    ) -> Attempt:
        """Send a request; `end` must follow.

        counted: the part of its work that fills the server's window, by default all of it. alone: the request holds the
        lane, which `end` releases.
        """
        call = self.forward.infer(message, timeout, metadata)
        attempt = Attempt(call, self, work, work if counted is None else counted, self.clock(), alone=alone)
        self.budget.request()
        call.add_done_callback(attempt.finished)
        self._row.begin(attempt.slot, attempt.counted)
        self.attempts.add(attempt)
        return attempt

    def end(self, attempt: Attempt) -> None:
        """The request has left this server."""
        self.attempts.discard(attempt)
        attempt.forward.done()
        self._row.end(attempt.slot, attempt.counted)
        if attempt.alone:
            self.leave_lane()

    def computed(self, attempt: Attempt) -> None:
        """The server answered a request with vectors."""
        self._row.answered(attempt.slot, attempt.work)

    def answered(self, attempt: Attempt) -> None:
        """The server answered a request."""
        self.answers = True
        self.breaks_in_a_row = 0
        now = self.clock()
        self.outlier.answered(now, now - attempt.began)

    def move(self, *, died: bool) -> None:
        """Send all requests in flight here elsewhere. died: one of them may have killed the server."""
        self.breaks += 1
        for attempt in self.attempts:
            if not attempt.done.done():
                attempt.died = died
                attempt.done.set_result(False)
                attempt.call.cancel()

    def follow(self, view: ServerView) -> bool:
        """Take over the parent's view. Returns True if requests in flight can't be answered here any more."""
        before, self.view = self.view, view
        another = view.restarts != before.restarts or view.address != before.address
        is_ready, was_ready = (each.state is ServerState.READY for each in (view, before))
        if another:
            self.incarnation = (self.key, self.incarnation[1] + 1)
            self.outlier, self.ejected_until = Outlier(self.clock()), 0.0
            self.window = Window(view.replicas, self.clock)
        if another or (is_ready and not was_ready):
            self.renew()
            self.answers = is_ready
        return another or view.state in (ServerState.STARTING, ServerState.FAILED, ServerState.REFUSED)

    def renew(self) -> None:
        """The server is well: end its ejection and use new channels, because old ones may wait before they
        reconnect."""
        self.reconnect()
        self.ejected = None

    def set_tls(self, tls: ClientTls) -> None:
        """Use this for new connections. If the server is reached over TLS, connect again."""
        self._tls = tls
        if without_scheme(self.view.address)[1]:
            self.reconnect()

    def reconnect(self) -> None:
        """Use new channels from now on."""
        self.forward.retire()
        self.forward = Forward(self.view.address, self._tls)

    def leave(self) -> None:
        """The server is no longer listed: its requests in flight finish."""
        self.forward.retire()
