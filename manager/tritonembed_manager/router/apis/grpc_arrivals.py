"""Receives gRPC messages: each message has a deadline, and all of them share bounded memory.

gRPC buffers the message of a unary call without bound before the handler runs, and offers no way to end such a call. So
every call is handled as a stream. This module reads its message, and flow control holds back the bytes that are not
read yet.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
import grpc.aio

from tritonembed_manager.router.data.admission import MEMORY_FULL, Memory, Pressure, give_back
from tritonembed_manager.router.interfaces import DispatchError

TICK_S = 0.05
_YOUNG_S = 0.25
"""Messages younger than this are never given up to free memory for others."""
_READ_UNDER_PRESSURE = 4
_GIVEN_UP_BYTES = 32 * 1024 * 1024
"""The most bytes that giving up a message may free."""
_TRIM_EVERY_S = 1.0
_TRIM_GROWTH_S, _TRIM_GROWTH_BYTES = 10.0, 32 * 1024 * 1024
"""Without memory pressure, the memory of large requests is returned at most this often, and only from this size on."""
_CODE = grpc.StatusCode


@dataclass(eq=False, slots=True)
class _Reading:
    task: "asyncio.Task[Any]"
    since: float
    refusal: DispatchError | None = None

    def give_up(self, refusal: DispatchError) -> None:
        if self.refusal is None:
            self.refusal = refusal
            self.task.cancel()


class Arrivals:
    """Wraps the handlers of a gRPC server.

    timeout: seconds from the beginning of a call to the end of its message. clock: seconds.
    """

    def __init__(
        self, timeout: float, memory: Memory | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._timeout = timeout
        self._memory = memory or Memory()
        self._clock = clock
        # Both are in the order in which the messages began.
        self._unary: dict[_Reading, None] = {}
        self._streams: dict[_Reading, None] = {}
        self._trimmed = 0.0
        self._held_after_trim = 0

    def over(self, server: grpc.aio.Server) -> Any:
        """The server to which handlers are added, wrapped."""
        return WrappedServer(server, lambda _method, handler: _wrap(handler, self))

    async def keep(self) -> None:
        """Check the arriving messages regularly, until cancelled."""
        while True:
            await asyncio.sleep(TICK_S)
            if self.look():
                await asyncio.to_thread(give_back)
                self._memory.look()
                self._held_after_trim = self._memory.held

    def look(self) -> bool:
        """Give up late messages and, under memory pressure, the oldest. Returns whether to call `give_back`."""
        now, memory = self._clock(), self._memory
        memory.look()
        for reading in list(self._unary):
            if now - reading.since < self._timeout:
                break
            reading.give_up(_late(self._timeout))
        if memory.pressure is Pressure.NONE:
            return self._has_grown(now)
        count = 1 + memory.over // _GIVEN_UP_BYTES
        old = [reading for reading in (*self._unary, *self._streams) if now - reading.since >= _YOUNG_S]
        for reading in old[:count]:
            reading.give_up(_full())
        if now - self._trimmed < _TRIM_EVERY_S:
            return False
        self._trimmed = now
        return True

    def _has_grown(self, now: float) -> bool:
        grown = self._memory.held - self._held_after_trim
        if grown < _TRIM_GROWTH_BYTES or now - self._trimmed < _TRIM_GROWTH_S:
            return False
        self._trimmed = now
        return True

    async def message(self, context: Any) -> Any:
        """The message of a call that has exactly one. Raises DispatchError."""
        since = self._clock()
        if self._memory.pressure:
            await self._room(since)
        reading = _Reading(_task(), since)
        self._unary[reading] = None
        try:
            found = await context.read()
        except asyncio.CancelledError:
            if reading.refusal is None:
                raise
            raise reading.refusal from None
        finally:
            del self._unary[reading]
        if found is grpc.aio.EOF:  # type: ignore[attr-defined]
            raise DispatchError(_CODE.INVALID_ARGUMENT, "the call has no message")
        return found

    async def messages(self, messages: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """The messages of a stream. While there is memory, a stream may be idle for ever."""
        while True:
            since = self._clock()
            reading = _Reading(_task(), since)
            self._streams[reading] = None
            try:
                if self._memory.pressure:
                    await self._room(since)
                found = await anext(messages)
            except StopAsyncIteration:
                return
            except asyncio.CancelledError:
                if reading.refusal is None:
                    raise
                # `refuse` always raises. The handler sees the error, too.
                with suppress(grpc.aio.AbortError):
                    await refuse(context, reading.refusal)
                return
            except DispatchError as error:
                with suppress(grpc.aio.AbortError):
                    await refuse(context, error)
                return
            finally:
                del self._streams[reading]
            yield found

    async def _room(self, since: float) -> None:
        while self._memory.pressure is Pressure.FULL or (
            self._memory.pressure and len(self._unary) >= _READ_UNDER_PRESSURE
        ):
            if self._clock() - since > self._timeout:
                raise _full()
            await asyncio.sleep(TICK_S)


class WrappedServer:
    """The part of grpc.aio.Server that adds handlers. wrap: from a method's name and handler to the handler to add."""

    def __init__(self, server: Any, wrap: Callable[[str, Any], Any]) -> None:
        self._server = server
        self._wrap = wrap

    def add_generic_rpc_handlers(self, handlers: Iterable[Any]) -> None:
        """Wrap the handlers and add them to the server."""
        self._server.add_generic_rpc_handlers(tuple(_Wrapped(handler, self._wrap) for handler in handlers))


class _Wrapped(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    def __init__(self, inner: Any, wrap: Callable[[str, Any], Any]) -> None:
        self._inner = inner
        self._wrap = wrap
        self._known: dict[str, Any] = {}

    def service(self, details: Any) -> Any:
        known = self._known.get(details.method)
        if known is None:
            inner = self._inner.service(details)
            if inner is not None:
                known = self._known[details.method] = self._wrap(details.method, inner)
        return known


def _wrap(handler: Any, arrivals: Arrivals) -> Any:
    forms = {"request_deserializer": handler.request_deserializer, "response_serializer": handler.response_serializer}
    if handler.unary_unary is not None:

        async def unary(_messages: Any, context: Any) -> Any:
            try:
                message = await arrivals.message(context)
            except DispatchError as error:
                return await refuse(context, error)
            return await handler.unary_unary(message, context)

        return grpc.stream_unary_rpc_method_handler(unary, **forms)
    if handler.unary_stream is not None:

        async def answers(_messages: Any, context: Any) -> AsyncIterator[Any]:
            try:
                message = await arrivals.message(context)
            except DispatchError as error:
                await refuse(context, error)
            async with aclosing(handler.unary_stream(message, context)) as found:
                async for answer in found:
                    yield answer

        return grpc.stream_stream_rpc_method_handler(answers, **forms)

    async def stream(messages: Any, context: Any) -> AsyncIterator[Any]:
        read = arrivals.messages(aiter(messages), context)
        async with aclosing(handler.stream_stream(read, context)) as found:
            async for answer in found:
                yield answer

    return grpc.stream_stream_rpc_method_handler(stream, **forms)


async def refuse(context: Any, error: DispatchError) -> NoReturn:
    """End the call with an error. gRPC clients read from grpc-retry-pushback-ms when to retry."""
    pushback = () if error.retry_after is None else (("grpc-retry-pushback-ms", str(round(error.retry_after * 1000))),)
    await context.abort(error.code, error.message, pushback)
    raise AssertionError("abort raises")


def _task() -> "asyncio.Task[Any]":
    task = asyncio.current_task()
    assert task is not None
    return task


def _late(timeout: float) -> DispatchError:
    return DispatchError(
        _CODE.DEADLINE_EXCEEDED, f"the request did not arrive within {timeout:g} s (--receive-timeout)"
    )


def _full() -> DispatchError:
    return DispatchError(_CODE.RESOURCE_EXHAUSTED, MEMORY_FULL, 1.0)
