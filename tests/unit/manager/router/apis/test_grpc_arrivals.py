"""Incoming gRPC messages: deadlines, and bounded memory."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest
from tests.fakes.http2 import RawCalls

from tritonembed_manager.router.apis.grpc_arrivals import Arrivals
from tritonembed_manager.router.data.admission import MEMORY_FULL, Memory

MEBIBYTE = 1024 * 1024


class Echo:
    """A service that answers with the length of the message."""

    def __init__(self):
        self.seen = []

    async def unary(self, message, _context):
        self.seen.append(len(message))
        return b"%d" % len(message)

    async def answers(self, message, _context):
        yield await self.unary(message, None)
        yield b"end"

    async def stream(self, messages, _context):
        async for message in messages:
            yield await self.unary(message, None)

    def handlers(self):
        return {
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "Answers": grpc.unary_stream_rpc_method_handler(self.answers),
            "Stream": grpc.stream_stream_rpc_method_handler(self.stream),
        }


@asynccontextmanager
async def serving(timeout=30.0, resident=lambda: 0, **limits):
    arrivals, echo = Arrivals(timeout, Memory(resident, **limits)), Echo()
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 64 * MEBIBYTE)])
    arrivals.over(server).add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", echo.handlers()),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    keeping = asyncio.ensure_future(arrivals.keep())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", [("grpc.enable_http_proxy", 0)]) as channel:
        yield channel, port, echo
    keeping.cancel()
    await server.stop(None)
    assert not arrivals._unary
    assert not arrivals._streams


async def test_calls_of_every_kind_work_as_without_arrivals():
    async with serving() as (channel, _, _):
        assert await channel.unary_unary("/a.B/Unary")(b"abc") == b"3"
        assert [answer async for answer in channel.unary_stream("/a.B/Answers")(b"")] == [b"0", b"end"]
        assert [answer async for answer in channel.stream_stream("/a.B/Stream")(iter([b"a", b"bb"]))] == [b"1", b"2"]
        assert await channel.unary_unary("/a.B/Unary")(bytes(64 * MEBIBYTE)) == b"%d" % (64 * MEBIBYTE)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/a.B/None")(b"abc")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        with pytest.raises(grpc.aio.AioRpcError, match="no message"):
            await channel.stream_unary("/a.B/Unary")(iter([]))


@pytest.mark.parametrize("method", ["Unary", "Answers"])
async def test_a_message_that_never_ends_is_given_up_at_its_deadline(method):
    async with serving(timeout=1.0) as (channel, port, echo), RawCalls(port) as stalled:
        await stalled.begin(f"/a.B/{method}", 1000, 500)
        await stalled.end()
        assert b"--receive-timeout" in stalled.received
        assert await channel.unary_unary("/a.B/Unary")(b"abc") == b"3"
        assert echo.seen == [3]


async def test_an_idle_stream_has_no_deadline():
    async with serving(timeout=0.7) as (channel, _, _):
        call = channel.stream_stream("/a.B/Stream")()
        await call.write(b"a")
        assert await call.read() == b"1"
        await asyncio.sleep(0.9)
        await call.write(b"bb")
        assert await call.read() == b"2"
        await call.done_writing()


@pytest.mark.parametrize("method", ["Unary", "Stream"])
async def test_if_memory_is_short_the_oldest_message_is_given_up_and_new_ones_are_read(method):
    resident = [0]
    async with (
        serving(resident=lambda: resident[0], high=100, full=1000) as (channel, port, _),
        RawCalls(port) as stalled,
    ):
        await stalled.begin(f"/a.B/{method}", 1000, 500)
        await asyncio.sleep(0.3)
        resident[0] = 200
        await stalled.end()
        assert MEMORY_FULL.encode() in stalled.received
        assert await channel.unary_unary("/a.B/Unary")(b"abc") == b"3"


async def test_if_memory_is_used_up_no_message_is_read_until_some_is_free():
    resident = [2000]
    async with serving(resident=lambda: resident[0], high=100, full=1000) as (channel, _, echo):
        await asyncio.sleep(0.1)
        call = asyncio.ensure_future(_answer(channel.unary_unary("/a.B/Unary")(b"abc")))
        await asyncio.sleep(0.3)
        assert not echo.seen
        resident[0] = 0
        assert await call == b"3"


async def test_a_message_that_waits_for_memory_is_refused_at_its_deadline():
    async with serving(timeout=0.2, resident=lambda: 2000, high=100, full=1000) as (channel, _, echo):
        await asyncio.sleep(0.1)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/a.B/Unary")(b"abc")
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert not echo.seen


async def _answer(call):
    return await call


async def test_memory_of_large_requests_is_returned_now_and_then_without_pressure():
    now, held = [0.0], [100 * MEBIBYTE]
    arrivals = Arrivals(30.0, Memory(lambda: held[0]), clock=lambda: now[0])
    looks = []
    for now[0], held[0] in (
        (5.0, 100 * MEBIBYTE),
        (10.0, 100 * MEBIBYTE),
        (15.0, 200 * MEBIBYTE),
        (20.0, 200 * MEBIBYTE),
    ):
        looks.append(arrivals.look())
    # The first return is for the growth from 0. Later returns are at least ten seconds apart.
    assert looks == [False, True, False, True]


async def test_memory_is_not_returned_again_unless_it_has_grown():
    trimmed = []
    arrivals = Arrivals(30.0, Memory(lambda: 100 * MEBIBYTE), clock=lambda: 100.0 * len(trimmed) + 100.0)
    original = arrivals.look
    arrivals.look = lambda: trimmed.append(original()) or trimmed[-1]
    keeping = asyncio.ensure_future(arrivals.keep())
    while len(trimmed) < 4:
        await asyncio.sleep(0.05)
    keeping.cancel()
    assert trimmed[:4] == [True, False, False, False]
