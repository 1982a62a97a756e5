"""Requests to servers: admission, policy, deadlines, and another server when one breaks."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import grpc
import grpc.aio

from tritonembed._retry_budget import RetryBudget
from tritonembed.policies import Policy
from tritonembed_manager.serve.admission import Admission
from tritonembed_manager.serve.meter import Meter
from tritonembed_manager.serve.model import DispatchError, ServerView, Ticket
from tritonembed_manager.serve.outcome import Outcome, classify, says_why, unreachable
from tritonembed_manager.serve.pool import ServerPool
from tritonembed_manager.serve.request import EXPIRED, Request, prepare, seconds
from tritonembed_manager.serve.server import Attempt, Incarnation, Server

_MOST_SERVERS = 4
"""Servers that may break under one request before it is given up: it may be what breaks them."""
_SPARE_S, _SPARE_PART = 0.02, 0.1
"""How long before its deadline a request that waits for a server is given up: so long, and this part of its time."""
_LOOK_AGAIN_S = 0.1
"""A request that waits for a place at a full server looks again: of one that another worker frees nobody tells it."""
_CODE = grpc.StatusCode


class TritonDispatcher:
    """The Dispatcher of a worker (serve/model.py says what it promises)."""

    def __init__(
        self,
        pool: ServerPool,
        policy: Policy,
        admission: Admission,
        forward_timeout: float,
        meter: Meter | None = None,
        budget: RetryBudget | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pool = pool
        self.admission = admission
        self.meter = meter or Meter()
        self._policy = policy
        self._forward_timeout = forward_timeout
        self._budget = budget or RetryBudget()
        self._clock = clock

    def servers(self) -> list[ServerView]:
        """All servers, as the parent last said."""
        return self.pool.views()

    def serving(self) -> list[str]:
        """Ids of the servers that requests go to; see serve/model.py."""
        return [server.key for server in self.pool.serving]

    async def infer(
        self,
        request: bytes,
        *,
        timeout: float | None,
        metadata: Sequence[tuple[str, str | bytes]],
        ticket: Ticket | None = None,
    ) -> bytes:
        """An encoded ModelInferRequest to one of the servers; see serve/model.py."""
        if ticket is None:
            with self.admitted(len(request), timeout=timeout) as own:
                return await self.infer(request, timeout=timeout, metadata=metadata, ticket=own)
        self._budget.request()
        return await self._answer(prepare(request, metadata, self._clock(), ticket))

    @contextmanager
    def admitted(self, size: int, *, timeout: float | None) -> Iterator[Ticket]:
        """Take in what becomes several requests; see serve/model.py."""
        began = self._clock()
        code = _CODE.CANCELLED
        try:
            self.admission.enter(size)
            try:
                yield Ticket(began + seconds(timeout, self._forward_timeout))
                code = _CODE.OK
            finally:
                self.admission.leave(size)
        except Exception as error:
            code = error.code if isinstance(error, DispatchError) else _CODE.INTERNAL
            raise
        finally:
            self.meter.request(code, self._clock() - began)

    async def call(self, method: str, request: bytes, *, timeout: float | None, server: str | None = None) -> bytes:
        """Another unary method, on any ready server or on the one with that id; see serve/model.py."""
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
                # What gRPC says of a connection names addresses.
                broken = classify(code, details) is Outcome.BROKEN and not says_why(details)
                raise DispatchError(code, "the server broke" if broken else details or code.name) from None

    def cut(self) -> None:
        """The time to drain is over: everything that waits or is in flight ends UNAVAILABLE, now."""
        self.admission.cut()
        self.pool.move_all()

    async def _answer(self, request: Request) -> bytes:
        while True:
            server = self._choose(request.tried) or await self._wait(request)
            now = self._clock()
            message = request.timed_message(now)
            request.ticket.started = True
            attempt = server.begin(message, request.ticket.deadline - now, request.metadata, len(request.message))
            code = _CODE.CANCELLED
            charged = False
            try:
                if await attempt.done:
                    answer: bytes = await attempt.call
                    code = _CODE.OK
                    server.answered()
                    return answer
                self.admission.raise_if_cut()
                code = _CODE.ABORTED
            except grpc.aio.AioRpcError as error:
                code = error.code()
                charged = self._broke(error, server, attempt)
            finally:
                if code is _CODE.CANCELLED:
                    attempt.call.cancel()
                self.pool.end(server, attempt)
                self.meter.attempt(server.key, code, self._clock() - now)
            self._send_again(request, attempt, charged=charged)

    def _choose(self, tried: Sequence[Incarnation]) -> Server | None:
        candidates = self.pool.candidates(tried)
        return candidates[self._policy.choose(candidates)] if candidates else None

    async def _wait(self, request: Request) -> Server:
        """The next server with a place. A new request is refused where all are full; what was sent before waits."""
        if not request.ticket.started and self.pool.usable():
            raise self.admission.overload("every server has as many requests as it may have")
        now = self._clock()
        # A caller whose own clock runs out first does not hear why.
        until = request.start_by - min(_SPARE_S, (request.start_by - now) * _SPARE_PART)
        while True:
            self.admission.raise_if_cut()
            if self.pool.exhausted(request.tried):
                raise DispatchError(_CODE.UNAVAILABLE, "every server broke while it worked on the request")
            left = until - self._clock()
            if left <= 0:
                if until > now and not self.pool.usable(request.tried):
                    raise DispatchError(_CODE.UNAVAILABLE, "no server became ready before the deadline")
                raise DispatchError(_CODE.DEADLINE_EXCEEDED, EXPIRED)
            is_full = bool(self.pool.usable(request.tried))
            await self.pool.waiters.wait(min(left, _LOOK_AGAIN_S) if is_full else left, request.tried)
            server = self._choose(request.tried)
            if server is not None:
                return server

    def _broke(self, error: grpc.aio.AioRpcError, server: Server, attempt: Attempt) -> bool:
        """Raises what the client is to see, unless another server can answer: then, whether that is to be charged."""
        code, details = error.code(), error.details()
        outcome = classify(code, details)
        if outcome in (Outcome.BROKEN, Outcome.STUB_DIED):
            if attempt.incarnation != server.incarnation or attempt.seen_breaks != server.breaks:
                return False  # known already: it was in flight there
            self.meter.ejected(server.key)
            self.pool.broke(server, f"{code.name}: {outcome.value}", move=outcome is Outcome.STUB_DIED)
            return True
        if code is not _CODE.DEADLINE_EXCEEDED:
            server.answered()
        if outcome is Outcome.OVERLOAD:
            raise self.admission.overload("the server's queue is full")
        if outcome is Outcome.EXPIRED:
            raise DispatchError(_CODE.DEADLINE_EXCEEDED, unreachable(details) or EXPIRED)
        raise DispatchError(code, details or code.name)

    def _send_again(self, request: Request, attempt: Attempt, *, charged: bool) -> None:
        """Raises DispatchError where it is not to be."""
        self.admission.raise_if_cut()
        request.tried.append(attempt.incarnation)
        if len(request.tried) >= _MOST_SERVERS:
            raise DispatchError(_CODE.UNAVAILABLE, f"{_MOST_SERVERS} servers broke while they worked on the request")
        if charged and not self._budget.take():
            raise DispatchError(_CODE.UNAVAILABLE, "a server broke; too many requests are sent again already")
        self.meter.again(charged=charged)
