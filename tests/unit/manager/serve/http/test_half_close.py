"""A client may close its half of the connection once it has sent its request."""

import asyncio
import json
from urllib.parse import urlsplit

import pytest

BODY = json.dumps({"input": "one"}).encode()
LIMIT_S = 20
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"


def post(body=BODY, version="1.1", length=None):
    head = f"POST /v1/embeddings HTTP/{version}\r\nHost: a\r\nContent-Length: {length or len(body)}\r\n\r\n"
    return head.encode() + body


async def connect(serving):
    place = urlsplit(serving.base)
    return await asyncio.open_connection(place.hostname, place.port)


async def rest_of(reader, writer):
    """All that comes until the server closes."""
    found = await asyncio.wait_for(reader.read(), LIMIT_S)
    writer.close()
    return found


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_it_gets_its_answer_and_the_connection_is_closed(serving, version):
    reader, writer = await connect(serving)
    writer.write(post(version=version))
    writer.write_eof()
    found = await rest_of(reader, writer)
    assert b" 200 OK\r\n" in found
    assert found.endswith(b"}")


async def test_it_gets_an_answer_that_takes_long(serving, dispatcher):
    dispatcher.released.clear()
    reader, writer = await connect(serving)
    writer.write(post())
    writer.write_eof()
    await dispatcher.inside.acquire()
    assert await asyncio.wait_for(reader.readexactly(len(INTERIM)), LIMIT_S) == INTERIM
    dispatcher.released.set()
    found = await rest_of(reader, writer)
    assert found.replace(INTERIM, b"").startswith(b"HTTP/1.1 200 OK\r\n")


async def test_a_client_of_http_1_0_gets_no_interim_answer(serving, dispatcher):
    dispatcher.released.clear()
    reader, writer = await connect(serving)
    writer.write(post(version="1.0"))
    writer.write_eof()
    await dispatcher.inside.acquire()
    asyncio.get_running_loop().call_later(0.3, dispatcher.released.set)
    assert (await rest_of(reader, writer)).startswith(b"HTTP/1.0 200 OK\r\n")


async def test_every_one_of_several_requests_is_answered(serving):
    reader, writer = await connect(serving)
    writer.write(post() * 3)
    writer.write_eof()
    assert (await rest_of(reader, writer)).count(b" 200 OK\r\n") == 3


async def test_a_large_answer_that_is_read_slowly_comes_whole(serving):
    reader, writer = await connect(serving)
    writer.write(post(json.dumps({"input": ["one"] * 30_000}).encode()))
    writer.write_eof()
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LIMIT_S)
    while head == INTERIM:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LIMIT_S)
    # Longer than an idle connection is left open.
    await asyncio.sleep(1.5)
    body = await rest_of(reader, writer)
    assert len(json.loads(body)["data"]) == 30_000


async def test_a_client_that_is_gone_frees_its_place(serving, dispatcher):
    dispatcher.released.clear()
    _, writer = await connect(serving)
    writer.write(post())
    await dispatcher.inside.acquire()
    writer.close()
    await asyncio.wait_for(dispatcher.cancelled.acquire(), LIMIT_S)


@pytest.mark.parametrize("sent", [b"", b"POST /v1/emb", post(length=len(BODY) + 1)])
async def test_what_will_never_be_a_request_is_closed(serving, dispatcher, sent):
    reader, writer = await connect(serving)
    writer.write(sent)
    writer.write_eof()
    assert b"200 OK" not in await rest_of(reader, writer)
    assert not dispatcher.requests
