"""HTTP connections that are half closed, and requests that are malformed."""

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
    """All bytes until the server closes the connection."""
    found = await asyncio.wait_for(reader.read(), LIMIT_S)
    writer.close()
    return found


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_the_client_gets_its_answer_and_the_connection_is_closed(serving, version):
    reader, writer = await connect(serving)
    writer.write(post(version=version))
    writer.write_eof()
    found = await rest_of(reader, writer)
    assert b" 200 OK\r\n" in found
    assert found.endswith(b"}")


async def test_the_client_gets_an_answer_that_takes_long(serving, dispatcher):
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


async def test_all_requests_of_a_connection_are_answered(serving):
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
    # This is longer than an idle connection stays open.
    await asyncio.sleep(1.5)
    body = whole(head, await rest_of(reader, writer))
    assert len(json.loads(body)["data"]) == 30_000


def whole(head, body):
    """The body of a response, which may be chunked (RFC 9112, 7.1)."""
    if b"chunked" not in head.lower():
        return body
    chunks = []
    while body:
        size, _, body = body.partition(b"\r\n")
        chunks.append(body[: int(size, 16)])
        body = body[int(size, 16) + 2 :]
    return b"".join(chunks)


async def test_a_client_that_is_gone_frees_its_place(serving, dispatcher):
    dispatcher.released.clear()
    _, writer = await connect(serving)
    writer.write(post())
    await dispatcher.inside.acquire()
    writer.close()
    await asyncio.wait_for(dispatcher.cancelled.acquire(), LIMIT_S)


@pytest.mark.parametrize("sent", [b"", b"POST /v1/emb", post(length=len(BODY) + 1)])
async def test_a_connection_whose_request_never_completes_is_closed(serving, dispatcher, sent):
    reader, writer = await connect(serving)
    writer.write(sent)
    writer.write_eof()
    assert b"200 OK" not in await rest_of(reader, writer)
    assert not dispatcher.requests


SECRET = b"5ecre7"
HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
INPUTS = {
    "a space before the colon": b"GET /health HTTP/1.1\r\nHost: a\r\nAuthorization : Bearer 5ecre7\r\n\r\n",
    "a control byte in the query": b"GET /health?api_key=5ecre7\x01 HTTP/1.1\r\nHost: a\r\n\r\n",
    "a control byte in a header": b"GET /health HTTP/1.1\r\nHost: a\r\nAuthorization: 5ecre7\x01\r\n\r\n",
    "a wrong chunk size": CHUNKED + b"5ecre7\r\n",
    "a wrong chunk behind a good one": CHUNKED + b"2\r\n{}5ecre7\r\n",
    "a chunk size that comes later": CHUNKED + b"2\r\n{}\r\n5ecre7\r\n",
    "no HTTP": b"5ecre7\r\n\r\n",
    "another protocol": b"\x16\x03\x01\x02\x00\x015ecre7" * 20 + b"\r\n\r\n",
    "a long line": b"GET /?" + b"5ecre7" * 2000 + b" HTTP/1.1\r\n\r\n",
    "a long header": b"GET / HTTP/1.1\r\nAuthorization: " + b"5ecre7" * 2000 + b"\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\n" + b"".join(b"A%d: 5ecre7\r\n" % i for i in range(500)) + b"\r\n",
    "two lengths": HEAD + b"Content-Length: 3\r\nContent-Length: 5ecre7\r\n\r\n",
    "an unknown transfer": HEAD + b"Transfer-Encoding: 5ecre7\r\n\r\n",
    "a wrong method": b"5ecre7[] / HTTP/1.1\r\n\r\n",
    "a wrong version": b"GET / HTTP/5ecre7\r\nHost: a\r\n\r\n",
    "wrong JSON": HEAD + b"Content-Length: 12\r\n\r\n{5ecre7      ",
    "a cut body": HEAD + b"Content-Length: 12\r\n\r\n5ecre7",
    "no such path": b"GET /5ecre7 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    "a wrong encoding": HEAD + b"Content-Encoding: gzip\r\nContent-Length: 6\r\n\r\n5ecre7",
}


@pytest.mark.parametrize("given", INPUTS)
async def test_nothing_of_a_wrong_request_is_in_the_log_or_the_answer(log_lines, serving, given):
    stream = log_lines("json")
    place = urlsplit(serving.base)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    writer.write(INPUTS[given])
    await writer.drain()
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    assert SECRET not in answer
    if answer:
        head, _, body = answer.rpartition(b"\r\n\r\n")
        assert b" 400 " in head or b" 404 " in head
        assert set(json.loads(body)) == {"error"}
    await asyncio.sleep(0)
    for line in stream.getvalue().splitlines():
        assert "5ecre7" not in line
        assert json.loads(line)["level"] == "warning"
