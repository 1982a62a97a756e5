"""Sends requests to servers: admission, policy, deadlines, and failover if a server breaks."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import grpc.aio

from tritonembed_manager.router.data import spaces
from tritonembed_manager.router.data.admission import CUT, AdmissionControl
from tritonembed_manager.router.data.failover import MOST_SERVERS, REASON, VERDICT_S, Break, Quarantine, digest
from tritonembed_manager.router.data.front_queue import LOOK_AGAIN_S, Callers, FrontQueue
from tritonembed_manager.router.data.hedging import After, Hedging
from tritonembed_manager.router.data.metrics import Meter
from tritonembed_manager.router.data.outliers import LEAST_WAIT_S
from tritonembed_manager.router.data.parts import GoWholeError, Parts, rows_of
from tritonembed_manager.router.data.pool import Loads, UpstreamPool
from tritonembed_manager.router.data.request import (
    EXPIRED,
    BrokenAnswer,
    ForwardedRequest,
    forwarded,
    prepare,
    read,
    read_answer,
    seconds,
)
from tritonembed_manager.router.data.tenants import cache_salt
from tritonembed_manager.router.data.upstream import Attempt, Incarnation, Upstream
from tritonembed_manager.router.interfaces import NOBODY, Admission, Caller, DispatchError, Metadata, ServerView
from tritonembed_protocol.policies import Policy
from tritonembed_protocol.served import FIRST_MODEL, ServedModel
from tritonembed_protocol.space import is_refusal
from tritonembed_protocol.status import Outcome, classify, is_about_models, status_of, unreachable_deadline

_MOST_SERVERS = 4
"""Servers that may break under one request before it is given up: the request may be the cause."""
_LOOK_FOR_A_LANE_S = 0.01
NOT_READY = "no server became ready before the deadline"
NO_ADAPTER = "adapter: the model has no such adapter; the server's list of models names those that there are"
_CODE = grpc.StatusCode


class ElsewhereError(Exception):
    """No server can take the request, but another dispatcher may (see `can_move`)."""


class TritonDispatcher:
    """The Dispatcher of a worker; interfaces.py describes its methods.

    served: the model that the servers of the pool have. is_only: whether there is no other model.
    hedge_after: when an interactive request is late (hedging.py); None: requests are not hedged.
    quarantined: called with the digest of a query of death and the ids of the servers that died with it.
    """

    def __init__(
        self,
        pool: UpstreamPool,
        policy: Policy,
        admission: AdmissionControl,
        forward_timeout: float,
        meter: Meter | None = None,
        quarantine: Quarantine | None = None,
        quarantined: Callable[[str, list[str]], None] = lambda _digest, _servers: None,
        clock: Callable[[], float] = time.monotonic,
        hedge_after: After | None = None,
        served: ServedModel = FIRST_MODEL,
        is_only: bool = True,
    ) -> None:
        self.served = served
        self._is_only = is_only
        self._requests = 0
        """This worker's requests for the model."""
        self._came = 0
        """Bytes of work that arrived since the last `count_load`."""
        self._refusal: DispatchError | None = None
        """The refusal of requests that would wait for a server."""
        self.can_move: Callable[[ForwardedRequest], bool] = lambda _request: False
        """Whether a request that finds no server should raise ElsewhereError instead of waiting for one."""
        self._with_vectors = frozenset(name.encode() for name in served.with_vectors)
        self.pool = pool
        self.admission = admission
        self.meter = meter or Meter()
        self._policy = policy
        self._forward_timeout = forward_timeout
        self.quarantine = quarantine or Quarantine()
        self._quarantined = quarantined
        self._clock = clock
        self._callers = Callers(pool.row)
        self._queue = FrontQueue(pool, policy, pool.row, self._begin, clock)
        pool.freed = self._freed
        pool.queued = self._queue.__len__
        self._hedging = None if hedge_after is None else Hedging(hedge_after, pool, self.meter, self._begin, clock)

    def refuse_waiting(self, error: DispatchError) -> None:
        """Refuse requests that wait while no server can take them, now and from now on."""
        self._refusal = error
        self.pool.wake()
        if not self.pool.usable():
            self._queue.fail(error)

    @property
    def requests(self) -> int:
        """An estimate for all workers: this worker's requests stand for those of the others."""
        return self._requests * self.pool.row.table.workers

    @property
    def is_idle(self) -> bool:
        """Whether no request is waiting or in flight."""
        return not self._requests

    def count_load(self, loads: Loads, queued: "Counter[tuple[int, str]]") -> None:
        """Add the work before its servers, the work that arrived since the last call, and the requests that wait here.

        queued: by priority and tenant.
        """
        came, self._came = self._came, 0
        loads.add(self.pool.servers(), self.pool.usable(), self._queue.work, came)
        queued.update(self._queue.counts())

    def servers(self) -> list[ServerView]:
        """All servers, as the parent last reported them."""
        return self.pool.views()

    def serving(self, model: str = "") -> list[str]:  # noqa: ARG002
        """Ids of the servers that receive requests; see interfaces.py. All of them have this model."""
        return [server.key for server in self.pool.serving]

    async def infer(
        self,
        request: bytes,
        *,
        timeout: float | None,
        metadata: Metadata,
        caller: Caller,
        admitted: Admission | None = None,
        adapter: str = "",
    ) -> bytes:
        """Send an encoded ModelInferRequest to one of the servers; see interfaces.py.

        adapter: the request's adapter, which clients see as a model; the request's parameters name it, too.
        """
        # A request whose metadata can't be forwarded is refused before it takes a slot.
        try:
            forwards = forwarded(metadata) if metadata else None
        except DispatchError as error:
            if admitted is None:
                self.refused(error.code)
            raise
        self._requests += 1
        try:
            if admitted is not None:
                admitted.model = adapter or self.served.name
                return await self._answer(self._prepare(request, forwards, admitted, adapter))
            with self.admitted(len(request), timeout=timeout, caller=caller) as own:
                own.model = adapter or self.served.name
                return await self._answer(self._prepare(request, forwards, own, adapter))
        finally:
            self._requests -= 1

    @contextmanager
    def admitted(
        self,
        size: int,
        *,
        timeout: float | None,
        caller: Caller,
        work: int | None = None,  # noqa: ARG002 - no limit here is one of work
        model: str = "",  # noqa: ARG002 - it is known by its messages
    ) -> Iterator[Admission]:
        """Admit a request that is sent to the servers in parts; see interfaces.py."""
        began = self._clock()
        code = _CODE.CANCELLED
        admission = Admission(began + seconds(timeout, self._forward_timeout), caller)
        try:
            self.admission.enter(size)
            self._callers.enter(caller)
            try:
                yield admission
                code = _CODE.OK
            finally:
                self._callers.leave(caller)
                self.admission.leave(size)
        except Exception as error:
            code = error.code if isinstance(error, DispatchError) else _CODE.INTERNAL
            raise
        finally:
            seconds_taken = self._clock() - began
            self.meter.ended(admission, code, seconds_taken)

    def refused(self, code: grpc.StatusCode) -> None:
        """Count a request that an endpoint refused; see interfaces.py."""
        self.meter.ended(Admission(0.0, NOBODY), code, 0.0)

    async def call(self, method: str, request: bytes, *, timeout: float | None, server: str | None = None) -> bytes:
        """Call another unary method, on any ready server or on the server with that id; see interfaces.py."""
        deadline = self._clock() + seconds(timeout, self._forward_timeout)
        tried: list[Incarnation] = []
        while True:
            found = self.pool.get(server) if server is not None else next(iter(self.pool.usable(tried)), None)
            if found is None:
                raise DispatchError(_CODE.UNAVAILABLE, "no server is ready" if server is None else "no such server")
            tried.append(found.incarnation)
            left = deadline - self._clock()
            if left <= 0:
                raise DispatchError(_CODE.DEADLINE_EXCEEDED, EXPIRED)
            try:
                return await found.forward.call(method, request, left)
            except grpc.aio.AioRpcError as error:
                code, details = error.code(), error.details()
                if code is _CODE.UNAVAILABLE and server is None and self.pool.usable(tried):
                    continue
                # gRPC's details about a connection contain addresses.
                broken = classify(code.name, details) is Outcome.BROKEN and not is_about_models(details)
                raise DispatchError(code, "the server broke" if broken else details or code.name) from None

    async def until_usable(self, timeout: float | None) -> None:
        """Wait until a server can receive requests. timeout: as for `call`. Raises DispatchError if none can."""
        deadline = self._clock() + seconds(timeout, self._forward_timeout)
        while not self.pool.usable():
            left = deadline - self._clock()
            if left <= 0:
                raise DispatchError(_CODE.UNAVAILABLE, NOT_READY)
            self.admission.raise_if_cut()
            if self._refusal is not None:
                raise self._refusal
            await self.pool.waiters.wait(left, ())

    def cut(self) -> None:
        """The drain timeout is over: every request that waits or is in flight ends with UNAVAILABLE now."""
        self.admission.cut()
        self._queue.fail(DispatchError(_CODE.UNAVAILABLE, CUT))
        self.pool.move_all()

    def _prepare(
        self, message: bytes, metadata: Metadata | None, admitted: Admission, adapter: str
    ) -> ForwardedRequest:
        """Raises DispatchError for a request that no server may receive."""
        envelope = read(message)
        if envelope.adapter != adapter:
            raise DispatchError(_CODE.INVALID_ARGUMENT, NO_ADAPTER)
        if self.quarantine.holds(message, envelope.own):
            raise DispatchError(_CODE.INTERNAL, REASON)
        request = prepare(message, envelope, metadata, self._clock(), admitted)
        if adapter and envelope.space and self.pool.serving:
            envelope.space = spaces.of_base(envelope.space, adapter, self.pool.serving)
        return request

    async def _answer(self, request: ForwardedRequest) -> bytes:
        """Send the request, in parts if it is large, and return its answer. Raises DispatchError."""
        self._came += request.work
        rows = rows_of(request.message, self.served) if self._queue.must_split(request) else None
        if rows is not None:
            self._refuse_if_full(request)
            try:
                return await Parts(request, rows, self._queue, self._begin, self._follow).answer()
            except BrokenAnswer as error:
                raise DispatchError(_CODE.INTERNAL, f"the servers sent {error}") from None
            except GoWholeError:
                await self._quarantine_if_deadly(request)
        server, attempt = await self._send(request)
        return await self._follow(request, server, attempt)

    async def _send(self, request: ForwardedRequest) -> tuple[Upstream, Attempt]:
        """Send the request to a server, as soon as it may be sent. Raises DispatchError."""
        if request.tried or not self.pool.usable():
            server = self._choose(request) or await self._wait(request)
            return server, self._begin(request, server)
        now = self._queue.server_now(request)
        if now is not None:
            return now, self._begin(request, now)
        self._refuse_if_full(request)
        return await self._queue.turn(request)

    def _refuse_if_full(self, request: ForwardedRequest) -> None:
        """Raises DispatchError if every server has its maximum of requests, waiting ones included."""
        if not request.admitted.started and self.pool.is_full() and self.pool.is_over(self._admitted()):
            raise self.admission.overload("every server has its maximum of requests")

    def _admitted(self) -> int:
        """Requests for the model in all workers."""
        return self.admission.admitted() if self._is_only else self.requests

    def _freed(self, server: Upstream | None) -> None:
        if server is not None:
            self._queue.ended(server)
            return
        self._queue.pump()
        if not self.pool.usable():
            self._queue.fail(ElsewhereError(), self.can_move)

    async def _follow(self, request: ForwardedRequest, server: Upstream, attempt: Attempt) -> bytes:
        """The answer to a request that was sent. If its server breaks, it is sent to another. Raises DispatchError."""
        while True:
            code = _CODE.CANCELLED
            charged = False
            try:
                if self._hedging is not None:
                    server, attempt = await self._hedging.first(request, server, attempt)
                if await attempt.done:
                    answer: bytes = await attempt.call
                    code = _CODE.DATA_LOSS
                    tokens = read_answer(answer, request.envelope.rows)
                    code = _CODE.OK
                    self._answered(server, attempt)
                    server.computed(attempt)
                    self.meter.tokens(server.key, tokens)
                    self._note(request, server, attempt, tokens)
                    own = spaces.of_vectors(attempt.space, request.envelope.adapter, server) if attempt.space else ""
                    return answer + spaces.parameter(own)
                self.admission.raise_if_cut()
                code = _CODE.ABORTED
            except BrokenAnswer as error:
                charged = True
                self.pool.broke(server, f"it sent {error}", move=False)
            except grpc.aio.AioRpcError as error:
                code = error.code()
                charged = self._broke(error, server, attempt)
            finally:
                if code is _CODE.CANCELLED:
                    attempt.call.cancel()
                self.pool.end(server, attempt)
                self.meter.attempt(server.key, code, self._clock() - attempt.began)
            await self._send_again(request, server, attempt, charged=charged)
            server, attempt = await self._send(request)

    def _choose(self, request: ForwardedRequest) -> Upstream | None:
        candidates = self.pool.candidates(request.tried)
        if request.envelope.space:
            candidates = spaces.only(candidates, request.envelope.space, self.pool.serving)
        request.alone = request.is_suspected
        while candidates:
            place = self._policy.choose(candidates)
            if not request.alone or candidates[place].take_lane():
                return candidates[place]
            candidates = [*candidates[:place], *candidates[place + 1 :]]
        return None

    def _begin(self, request: ForwardedRequest, server: Upstream) -> Attempt:
        now = self._clock()
        try:
            space = spaces.of_request(request.envelope.model, self._with_vectors, server)
            own = spaces.of_vectors(space, request.envelope.adapter, server) if space else ""
            message = request.timed_message(now, spaces.parameter(own) + self._salt(request))
            left = request.admitted.deadline - now
            counted = self._queue.counted(request, server)
            attempt = server.begin(message, left, request.metadata, request.work, counted, alone=request.alone)
            attempt.space = space
        except BaseException:
            if request.alone:
                server.leave_lane()
            raise
        if not request.admitted.started:
            request.admitted.started = True
            request.admitted.waited = now - request.arrived
            self.meter.waited(request.envelope.priority, request.admitted.waited)
        self.pool.begin(server, attempt)
        return attempt

    def _salt(self, request: ForwardedRequest) -> bytes:
        """Runs after the quarantine, which recognises a query of death from any caller."""
        caller = request.admitted.caller
        if not caller.is_tenant or request.envelope.model not in self._with_vectors:
            return b""
        return cache_salt(caller.name, request.envelope.cache_salt)

    def _note(self, request: ForwardedRequest, server: Upstream, attempt: Attempt, tokens: int) -> None:
        admitted = request.admitted
        admitted.tokens += tokens
        admitted.sentences += request.envelope.rows
        admitted.server = server.key
        admitted.at_server = max(admitted.at_server, self._clock() - attempt.began)

    def _answered(self, server: Upstream, attempt: Attempt) -> None:
        server.answered(attempt)
        if server.outlier.trial:
            self.pool.recovered(server)

    async def _wait(self, request: ForwardedRequest) -> Upstream:
        """Wait for a server with room. If all are full, a new request is refused; one that was sent before waits."""
        if not request.admitted.started and self.pool.is_full():
            raise self.admission.overload("every server has its maximum of requests")
        now = self._clock()
        until = request.give_up_at(now)
        turns, is_turn = self.pool.turns, False
        try:
            while True:
                left = until - self._clock()
                self._raise_if_hopeless(request, left, waited=until > now)
                request.alone = request.is_suspected
                if request.alone and not is_turn:
                    is_turn = turns.take()
                    if not is_turn:
                        await turns.wait(left)
                        continue
                is_full = bool(self.pool.usable(request.tried))
                look_again = _LOOK_FOR_A_LANE_S if request.alone else LOOK_AGAIN_S
                await self.pool.waiters.wait(min(left, look_again) if is_full else left, request.tried)
                server = self._choose(request)
                if server is not None:
                    return server
        finally:
            if is_turn:
                turns.give()

    def _raise_if_hopeless(self, request: ForwardedRequest, left: float, *, waited: bool) -> None:
        self.admission.raise_if_cut()
        if not self.pool.usable(request.tried) and self.can_move(request):
            raise ElsewhereError
        if self._refusal is not None and not self.pool.usable():
            raise self._refusal
        if self.pool.exhausted(request.tried):
            raise DispatchError(_CODE.UNAVAILABLE, "every server broke while it worked on the request")
        if left <= 0:
            if waited and not self.pool.usable(request.tried):
                raise DispatchError(_CODE.UNAVAILABLE, NOT_READY)
            raise DispatchError(_CODE.DEADLINE_EXCEEDED, EXPIRED)

    def _broke(self, error: grpc.aio.AioRpcError, server: Upstream, attempt: Attempt) -> bool:
        """Raises the error for the client. If another server can answer, returns whether to charge the retry budget."""
        code, details = error.code(), error.details()
        outcome = classify(code.name, details)
        # If every server has unloaded the model, an operator did so: the client gets Triton's own answer.
        if outcome.is_broken and (code is not _CODE.NOT_FOUND or self.pool.usable([attempt.incarnation])):
            attempt.died = True
            if attempt.incarnation != server.incarnation or attempt.seen_breaks != server.breaks:
                return False  # the request was in flight when this break was found
            self.meter.ejected(server.key)
            self.pool.broke(server, f"{code.name}: {outcome.value}", move=outcome is Outcome.STUB_DIED)
            return True
        if attempt.space and is_refusal(details):
            # The caller did not ask for this space: it is that of the server's last check.
            self.pool.broke(server, spaces.CHANGED, move=False)
            return True
        if code is _CODE.DEADLINE_EXCEEDED:
            waited_in_vain = server.outlier.last_answer < attempt.began
            if waited_in_vain and self._clock() - attempt.began >= LEAST_WAIT_S:
                self.pool.failed(server)
        elif outcome is Outcome.ANSWERED and status_of(code.name).suspicious:
            self.pool.failed(server)
        else:
            self._answered(server, attempt)
        if outcome is Outcome.OVERLOAD:
            raise self.admission.overload("the server's queue is full")
        if outcome is Outcome.NO_ROOM:
            raise self.admission.overload("the server's shared memory (/dev/shm) is full")
        if outcome is Outcome.EXPIRED:
            raise DispatchError(_CODE.DEADLINE_EXCEEDED, unreachable_deadline(details) or EXPIRED)
        raise DispatchError(code, details or code.name)

    async def _send_again(
        self, request: ForwardedRequest, server: Upstream, attempt: Attempt, *, charged: bool
    ) -> None:
        """Prepare to send the request to another server. Raises DispatchError if it must not be sent again."""
        self.admission.raise_if_cut()
        request.tried.append(attempt.incarnation)
        if attempt.died:
            request.breaks.append(Break(server, attempt.seen_deaths, attempt.seen_clears))
            if not request.is_part:
                await self._quarantine_if_deadly(request)
        if len(request.tried) >= _MOST_SERVERS:
            raise DispatchError(_CODE.UNAVAILABLE, f"{_MOST_SERVERS} servers broke while they worked on the request")
        if charged and not server.budget.take():
            raise DispatchError(_CODE.UNAVAILABLE, "a server broke; too many requests are retried already")
        self.meter.again(charged=charged)
        if request.is_part and request.breaks:
            raise GoWholeError

    async def _quarantine_if_deadly(self, request: ForwardedRequest) -> None:
        """Quarantine the request and raise DispatchError if MOST_SERVERS servers died with it in flight."""
        until = self._clock() + VERDICT_S
        while len(request.open_breaks()) >= MOST_SERVERS:
            died = [found.server.key for found in request.breaks if found.died]
            if len(died) >= MOST_SERVERS:
                name = digest(request.message, request.envelope.own)
                self.quarantine.add(name)
                self._quarantined(name, died)
                raise DispatchError(_CODE.INTERNAL, REASON)
            if self._clock() >= until:
                return
            await asyncio.sleep(_LOOK_FOR_A_LANE_S)
