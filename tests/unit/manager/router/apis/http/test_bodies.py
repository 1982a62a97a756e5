"""Bounds on each body and on all bodies together, also for compressed bodies."""

import asyncio
import gzip
import zlib
from functools import partial

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from tests.unit.manager.router.settings import http_limits

from tritonembed_manager.router.apis.http.bodies import Bodies
from tritonembed_manager.router.apis.http.errors import answer_errors

# Bodies are part of the tests' ids, which a time stamp would change from run to run.
packed = partial(gzip.compress, mtime=0)


@pytest.fixture
async def held():
    """A client of a server that holds every body until `release` is set, and the server's `Bodies`."""
    bodies = Bodies(http_limits(), max_body=1000, max_held=1500)
    bodies.inside, bodies.left, bodies.release = asyncio.Semaphore(0), asyncio.Semaphore(0), asyncio.Event()

    async def handler(request):
        try:
            async with bodies.read(request) as body:
                bodies.inside.release()
                await bodies.release.wait()
                return web.Response(body=body)
        finally:
            bodies.left.release()

    app = web.Application(middlewares=[answer_errors], client_max_size=1000)
    app.router.add_post("/", handler)
    server = TestServer(app)
    await server.start_server(auto_decompress=False)
    async with TestClient(server) as client:
        yield client, bodies
        assert bodies.held == 0


async def chunks(count, size=100):
    for _ in range(count):
        yield b"a" * size


async def test_a_body_comes_whole(held):
    client, bodies = held
    bodies.release.set()
    for given in (b"", b"abc", b"a" * 1000):
        answer = await client.post("/", data=given)
        assert await answer.read() == given
    assert await (await client.post("/", data=chunks(10))).read() == b"a" * 1000


@pytest.mark.parametrize(
    ("data", "headers"),
    [
        (b"a" * 1001, {}),
        (chunks(11), {}),
        (packed(bytes(1_000_000)), {"Content-Encoding": "gzip"}),
    ],
    ids=["announced", "chunked", "compressed"],
)
async def test_a_body_that_is_too_large_is_refused(held, data, headers):
    client, _ = held
    answer = await client.post("/", data=data, headers=headers)
    assert answer.status == 413
    assert "1000 bytes" in (await answer.json())["error"]


async def test_a_compressed_body_is_accepted(held):
    client, bodies = held
    bodies.release.set()
    answer = await client.post("/", data=packed(b"abc"), headers={"Content-Encoding": "gzip"})
    assert await answer.read() == b"abc"


async def test_a_body_that_contradicts_its_headers_is_a_bad_request(held):
    client, _ = held
    answer = await client.post("/", data=b"no gzip at all", headers={"Content-Encoding": "gzip"})
    assert answer.status == 400


async def test_too_many_bytes_at_a_time_are_overload_and_leave_no_trace(held):
    client, bodies = held
    first = asyncio.ensure_future(client.post("/", data=b"a" * 1000))
    await bodies.inside.acquire()
    assert bodies.held == 1000
    answer = await client.post("/", data=b"a" * 501)
    assert (answer.status, answer.headers["Retry-After"]) == (429, "1")
    assert bodies.held == 1000
    bodies.release.set()
    assert (await first).status == 200


async def test_a_client_that_goes_away_leaves_no_trace(held):
    client, bodies = held
    task = asyncio.ensure_future(client.post("/", data=b"a" * 700))
    await bodies.inside.acquire()
    task.cancel()
    await asyncio.wait_for(bodies.left.acquire(), 20)
    assert bodies.held == 0


RAW_DEFLATE = zlib.compress(b"abc")[2:-4]


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("x-gzip", packed(b"abc")),
        (" GZip ", packed(b"abc")),
        ("identity, gzip", packed(b"abc")),
        ("gzip", packed(b"a") + packed(b"bc")),
        ("gzip", packed(b"abc") + bytes(8)),
        ("deflate", zlib.compress(b"abc")),
        ("deflate", RAW_DEFLATE),
        ("identity", b"abc"),
        ("", b"abc"),
    ],
)
async def test_every_name_and_form_of_a_known_encoding_is_accepted(held, encoding, data):
    client, bodies = held
    bodies.release.set()
    answer = await client.post("/", data=data, headers={"Content-Encoding": encoding})
    assert await answer.read() == b"abc"


async def test_a_compressed_body_may_arrive_byte_by_byte(held):
    client, bodies = held
    bodies.release.set()

    async def bytewise():
        for byte in packed(b"abc") + packed(b"def"):
            yield bytes([byte])

    answer = await client.post("/", data=bytewise(), headers={"Content-Encoding": "gzip"})
    assert await answer.read() == b"abcdef"


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "utf-8"])
async def test_an_unknown_encoding_is_a_415_that_names_the_known_encodings(held, encoding):
    client, _ = held
    answer = await client.post("/", data=b"abc", headers={"Content-Encoding": encoding})
    assert answer.status == 415
    assert "gzip or deflate" in (await answer.json())["error"]


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("gzip", packed(b"a" * 900)[:-8]),
        ("gzip", packed(b"a" * 900)[:-1]),
        ("gzip", packed(b"a" * 900)[:5]),
        ("gzip", packed(b"abc") + packed(b"abc")[:9]),
        ("deflate", zlib.compress(b"a" * 900)[:-2]),
        ("deflate", RAW_DEFLATE[:-1]),
    ],
)
async def test_a_truncated_compressed_body_is_a_bad_request(held, encoding, data):
    client, _ = held
    answer = await client.post("/", data=data, headers={"Content-Encoding": encoding})
    assert (answer.status, "cut" in (await answer.json())["error"]) == (400, True)


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("gzip", packed(b"abc") + b"rest"),
        ("deflate", zlib.compress(b"abc") + b"rest"),
        ("gzip", zlib.compress(b"abc")),
    ],
)
async def test_a_body_in_another_encoding_is_a_bad_request(held, encoding, data):
    client, _ = held
    answer = await client.post("/", data=data, headers={"Content-Encoding": encoding})
    assert answer.status == 400
