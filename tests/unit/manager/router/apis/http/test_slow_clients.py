"""Clients that stall: heads, bodies and responses have time limits, and a stalled client takes nothing from others."""

import asyncio
import gzip
import json
import socket
import time
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest
from aiohttp import web
from tests.unit.manager.router.apis.http.conftest import running
from tests.unit.manager.router.settings import http_limits

from tritonembed_manager.router.apis.http.bodies import Bodies
from tritonembed_manager.router.apis.http.errors import answer_errors
from tritonembed_manager.router.data.admission import Memory

POST = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n"


@asynccontextmanager
async def connected(base, source=None):
    place = urlsplit(base)
    reader, writer = await asyncio.open_connection(
        place.hostname, place.port, local_addr=(source, 0) if source else None
    )
    yield reader, writer
    writer.close()


async def seconds_until_closed(reader):
    """Seconds until the server closes the connection, and the bytes before that."""
    began = time.monotonic()
    try:
        found = await asyncio.wait_for(reader.read(), 20)
    except ConnectionResetError:
        found = b""
    return time.monotonic() - began, found


async def dribble(writer, data, pause):
    for byte in data:
        writer.write(bytes([byte]))
        await asyncio.sleep(pause)


@pytest.mark.parametrize(
    "begin", [b"", b"GET /", b"GET / HTTP/1.1\r\nHost: a\r\nX: ", b"GET /health HTTP/1.1\r\nHost: a\r\n\r\nGET "]
)
async def test_a_head_that_does_not_arrive_in_time_closes_the_connection(dispatcher, begin):
    async with (
        running(dispatcher, limits=http_limits(header_timeout=1.0)) as serving,
        connected(serving.base) as (reader, writer),
    ):
        writer.write(begin)
        sending = asyncio.ensure_future(dribble(writer, b"A" * (100 if begin else 0), 0.1))
        took, _ = await seconds_until_closed(reader)
        sending.cancel()
        # All its bytes would take 10 s.
        assert 0.5 < took < 8


async def test_a_connection_between_two_requests_is_kept(dispatcher):
    async with (
        running(dispatcher, limits=http_limits(header_timeout=0.5)) as serving,
        connected(serving.base) as (reader, writer),
    ):
        for _ in range(2):
            writer.write(b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n")
            assert b"200 OK" in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
            await asyncio.sleep(1.5)


@pytest.mark.parametrize(
    ("limits", "option"),
    [
        (http_limits(receive_timeout=1.0, min_receive_rate=0), "--receive-timeout"),
        (http_limits(receive_timeout=60.0, min_receive_rate=100.0), "--min-receive-rate"),
    ],
    ids=["silent", "slow"],
)
async def test_a_body_that_is_too_slow_is_refused_with_the_name_of_the_setting(dispatcher, limits, option):
    async with running(dispatcher, limits=limits) as serving, connected(serving.base) as (reader, writer):
        writer.write(POST)
        sending = asyncio.ensure_future(dribble(writer, b"a" * 900, 0.1))
        answer = await asyncio.wait_for(reader.readuntil(b"}"), 20)
        sending.cancel()
        assert b" 408 " in answer
        assert option in json.loads(answer.rpartition(b"\r\n\r\n")[2] + b"}")["error"]["message"]


async def test_an_address_has_a_bounded_number_of_connections(dispatcher, log_lines):
    stream = log_lines("json")
    async with running(dispatcher, limits=http_limits(max_connections_per_peer=3)) as serving:
        async with connected(serving.base), connected(serving.base), connected(serving.base):
            await asyncio.sleep(0.1)
            async with connected(serving.base) as (reader, _):
                await seconds_until_closed(reader)
            async with connected(serving.base, "127.0.0.2") as (reader, writer):
                writer.write(b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n")
                assert b"200 OK" in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
        # The places are free again.
        await asyncio.sleep(0.2)
        assert (await serving.get("/v2/health/live")).status == 200
    assert "new ones are closed" in json.loads(stream.getvalue().splitlines()[0])["message"]


async def test_the_connection_of_a_client_that_does_not_read_is_closed(dispatcher):
    body = json.dumps({"input": ["a"] * 1000}).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    async with running(dispatcher, limits=http_limits(receive_timeout=1.0)) as serving:
        place = urlsplit(serving.base)
        with socket.create_connection((place.hostname, place.port)) as client:
            client.setblocking(False)

            async def send():
                # More responses than the sockets' buffers hold.
                await asyncio.get_running_loop().sock_sendall(client, (head + body) * 200)
                while True:
                    await asyncio.sleep(0.1)
                    client.send(b"\n")

            with pytest.raises(ConnectionError):
                await asyncio.wait_for(send(), 20)


@asynccontextmanager
async def places(**options):
    """A server of bodies of at most 1,000 bytes. Bodies over 100 bytes are large and share 1,500 bytes."""
    bodies = Bodies(http_limits(), max_body=1000, max_held=2000, small=100, **options)

    async def handler(request):
        async with bodies.read(request) as body:
            return web.Response(body=b"%d" % len(body))

    app = web.Application(middlewares=[answer_errors])
    app.router.add_post("/{name:.*}", handler)
    runner = web.AppRunner(app, auto_decompress=False, lingering_time=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield bodies, f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()
    assert bodies.held == 0


def request(size, sent=None):
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n"
    return head.encode() + b"a" * (size if sent is None else sent)


async def post(base, size, source="127.0.0.1"):
    """Sends a good request. Returns its status."""
    async with connected(base, source) as (reader, writer):
        writer.write(request(size))
        return int((await asyncio.wait_for(reader.readline(), 20)).split()[1])


async def test_stalled_bodies_take_no_place_from_small_bodies_and_lose_theirs_to_large_bodies():
    now = [0.0]
    async with (
        places(clock=lambda: now[0]) as (bodies, base),
        connected(base) as (first, one),
        connected(base, "127.0.0.2") as (_, two),
    ):
        one.write(request(1000, 740))
        two.write(request(1000, 740))
        while bodies.held < 1480:
            await asyncio.sleep(0.01)
        # There is no room for large bodies, but for small ones.
        assert await post(base, 500, "127.0.0.3") == 429
        assert await post(base, 100, "127.0.0.3") == 200
        now[0] = 1.1
        assert await post(base, 500, "127.0.0.3") == 200
        assert b" 408 " in await asyncio.wait_for(first.readline(), 20)


async def test_announced_bytes_take_no_place():
    async with places() as (_, base), connected(base) as (_, one), connected(base) as (_, two):
        one.write(request(1000, 0))
        two.write(request(1000, 0))
        await asyncio.sleep(0.1)
        assert await post(base, 1000) == 200


async def test_one_address_has_at_most_half_of_the_places():
    async with places() as (bodies, base), connected(base, "127.0.0.2") as (_, one):
        one.write(request(1000, 700))
        while bodies.held < 700:
            await asyncio.sleep(0.01)
        assert await post(base, 700, "127.0.0.2") == 429
        assert await post(base, 700, "127.0.0.1") == 200


async def test_large_bodies_are_refused_while_memory_is_short():
    memory = Memory(lambda: 2, high=1, full=3)
    memory.look()
    async with places(memory=memory) as (_, base):
        assert await post(base, 101) == 429
        assert await post(base, 100) == 200


async def test_unpacking_a_large_body_does_not_delay_other_requests():
    packed = gzip.compress(bytes(32 * 1024 * 1024))
    # A collection of garbage may lengthen a turn once.
    for _ in range(3):
        if (longest := await longest_turn_beside(packed)) < 0.1:
            break
    assert longest < 0.1


async def longest_turn_beside(packed):
    """Of this thread's own CPU time, in seconds, while it unpacks a body."""
    bodies, longest = Bodies(http_limits()), [0.0]

    async def handler(given):
        async with bodies.read(given) as body:
            return web.Response(body=b"%d" % len(body))

    async def turns():
        last = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            longest[0], last = max(longest[0], now - last), now

    app = web.Application()
    app.router.add_post("/", handler)
    runner = web.AppRunner(app, auto_decompress=False)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    turning = asyncio.ensure_future(turns())
    async with connected(f"http://127.0.0.1:{runner.addresses[0][1]}") as (reader, writer):
        head = f"POST / HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n"
        writer.write(head.encode() + packed)
        assert b"200" in await asyncio.wait_for(reader.readline(), 20)
    turning.cancel()
    await runner.cleanup()
    return longest[0]


async def test_an_answer_of_many_vectors_is_streamed_whole(serving):
    answer = await serving.post("/v1/embeddings", json={"input": [f"text {number}" for number in range(3000)]})
    assert answer.status == 200
    assert "Content-Length" not in answer.headers
    assert [item["index"] for item in answer.body["data"]] == list(range(3000))
