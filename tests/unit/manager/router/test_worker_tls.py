"""A worker whose ports speak TLS."""

import asyncio
import logging
import socket
import ssl
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict

import aiohttp
import grpc
import pytest
from cryptography import x509
from tests.fakes.certificates import Authority
from tests.fakes.data_plane import view
from tests.fakes.triton import FakeTriton, infer_request
from tests.unit.manager.router.test_worker import free_port, running_worker
from tritonclient.grpc import service_pb2_grpc

from tritonembed_manager.router.tls import Pems

AUTHORITY, OTHER = Authority(), Authority("another")
CERTIFICATE, KEY = AUTHORITY.sign()
BODY = {"input": ["a text"], "model": "a-model"}


def trusting(authority: Authority, *chain: str) -> ssl.SSLContext:
    """A client's context. chain: its certificate and key, already in a file."""
    context = ssl.create_default_context(cadata=authority.pem)
    if chain:
        context.load_cert_chain(*chain)
    return context


@asynccontextmanager
async def serving(client_ca: str | None = None, **changes):
    """A worker with TLS over a fake server: its ports, and its parent."""
    pems = Pems(CERTIFICATE, KEY, client_ca)
    ports = {"port": free_port(), "http_port": free_port()}
    async with FakeTriton() as fake, running_worker(tls=pems, **ports, **changes) as (_, parent, _, _):
        parent.send_servers(view("a", 0, fake.address))
        await parent.receive("ready")
        yield ports["port"], ports["http_port"], parent


async def infer(port: int, authority: Authority, client: tuple[str, str] | None = None) -> None:
    chain, key = client or (None, None)
    credentials = grpc.ssl_channel_credentials(authority.pem.encode(), key and key.encode(), chain and chain.encode())
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
        await service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(infer_request(b"a text"), timeout=20)


async def embed(port: int, context: ssl.SSLContext, session: aiohttp.ClientSession | None = None) -> None:
    async with aiohttp.ClientSession() as own:
        url = f"https://127.0.0.1:{port}/v1/embeddings"
        async with (session or own).post(url, json=BODY, ssl=context) as answer:
            assert answer.status == 200, await answer.text()
            assert len((await answer.json())["data"]) == 1


async def issuer(port: int, context: ssl.SSLContext) -> str:
    """Who signed the certificate that new connections get."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    peer = writer.get_extra_info("peercert")
    writer.close()
    return dict(pair for [pair] in peer["issuer"])["commonName"]


async def handshaken(port: int):
    """A connection after its handshake, whose bytes are encrypted by hand."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = trusting(AUTHORITY).wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while True:
        try:
            tls.do_handshake()
            return tls, incoming, outgoing, reader, writer
        except ssl.SSLWantReadError:
            writer.write(outgoing.read())
            incoming.write(await reader.read(1 << 16))


def lines_of(stream) -> list[str]:
    """The lines of the log, without those of grpc.aio about the event loops of earlier tests."""
    for handler in logging.getLogger().handlers:
        handler.flush()
    return [line for line in stream.getvalue().splitlines() if "PollerCompletionQueue" not in line]


@pytest.fixture
def client_files(tmp_path):
    """Writes a certificate and its key; returns their paths."""

    def write(pair):
        paths = tmp_path / "client.crt", tmp_path / "client.key"
        for path, content in zip(paths, pair, strict=True):
            path.write_text(content)
        return tuple(map(str, paths))

    return write


async def test_both_ports_speak_tls():
    async with serving() as (port, http_port, _):
        await infer(port, AUTHORITY)
        await embed(http_port, trusting(AUTHORITY))


async def test_a_new_certificate_is_for_new_connections_and_old_ones_stay():
    async with serving() as (port, http_port, parent), aiohttp.ClientSession() as session:
        first = trusting(AUTHORITY)
        await embed(http_port, first, session)
        both = trusting(AUTHORITY)
        both.load_verify_locations(cadata=OTHER.pem)
        assert await issuer(http_port, both) == "an authority"
        certificate, key = OTHER.sign()
        parent.report("tls", pems=asdict(Pems(certificate, key, None)))
        while await issuer(http_port, both) != "another":
            await asyncio.sleep(0.01)
        await infer(port, OTHER)
        with pytest.raises(grpc.aio.AioRpcError, match="CERTIFICATE_VERIFY_FAILED"):
            await infer(port, AUTHORITY)
        # A new connection would fail likewise, so this is the one from before.
        await embed(http_port, first, session)


async def test_clients_need_a_certificate_of_the_given_authority(client_files):
    async with serving(client_ca=OTHER.pem) as (port, http_port, parent):
        known = OTHER.sign("a client")
        await infer(port, AUTHORITY, known)
        await embed(http_port, trusting(AUTHORITY, *client_files(known)))
        expired = OTHER.sign("a client", days=(-2, -1))
        for wrong in (None, AUTHORITY.sign("a client"), expired):
            with pytest.raises(grpc.aio.AioRpcError):
                await infer(port, AUTHORITY, wrong)
            chain = client_files(wrong) if wrong else ()
            with pytest.raises(aiohttp.ClientError):
                await embed(http_port, trusting(AUTHORITY, *chain))
        # The authority can be replaced, too.
        third = Authority("a third")
        parent.report("tls", pems=asdict(Pems(CERTIFICATE, KEY, third.pem)))
        newly = trusting(AUTHORITY, *client_files(third.sign("a client")))
        async with asyncio.timeout(20):
            while True:
                try:
                    await embed(http_port, newly)
                    break
                except aiohttp.ClientError:
                    await asyncio.sleep(0.01)
        await infer(port, AUTHORITY, third.sign("a client"))
        with pytest.raises(aiohttp.ClientError):
            await embed(http_port, trusting(AUTHORITY, *client_files(known)))


async def test_a_client_that_sends_no_handshake_is_closed_in_time_and_counts_for_its_address():
    async with serving(http_header_timeout=0.3, max_connections_per_peer=2) as (_, port, _):
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(reader.readexactly(1), 0.5)
        writer.close()
        for reader, writer in silent:
            with suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 10) == b""
            writer.close()
        await embed(port, trusting(AUTHORITY))


async def test_a_head_that_does_not_follow_the_handshake_closes_the_connection():
    async with serving(http_header_timeout=0.3) as (_, port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting(AUTHORITY))
        writer.write(b"GET / HTT")
        with suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()


async def test_a_request_in_the_same_segment_as_the_handshakes_end_is_answered():
    async with serving() as (_, port, _):
        tls, incoming, outgoing, reader, writer = await handshaken(port)
        tls.write(b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        writer.write(outgoing.read())
        found = b""
        while b"\r\n\r\n" not in found:
            incoming.write(await asyncio.wait_for(reader.read(1 << 16), 10))
            try:
                found += tls.read(1 << 16)
            except ssl.SSLWantReadError:
                continue
        assert found.startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_failed_handshakes_write_nothing_to_the_log_and_take_nothing_from_others(log_lines):
    stream = log_lines("text")
    async with serving() as (port, http_port, _):
        for each in (port, http_port):
            for attack in (
                b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                b"\x16\x03\x01\xff",
            ):
                reader, writer = await asyncio.open_connection("127.0.0.1", each)
                writer.write(attack)
                writer.write_eof()
                with suppress(ConnectionResetError):
                    await asyncio.wait_for(reader.read(), 20)
                writer.close()
            with pytest.raises((aiohttp.ClientError, grpc.aio.AioRpcError)):
                await (infer if each == port else embed)(each, OTHER if each == port else trusting(OTHER))
        with socket.create_connection(("127.0.0.1", http_port)) as reset:
            reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await infer(port, AUTHORITY)
        await embed(http_port, trusting(AUTHORITY))
    assert lines_of(stream) == []


async def test_a_client_that_closes_its_half_is_closed_without_a_line(log_lines):
    stream = log_lines("text")
    async with serving() as (_, port, _):
        tls, _incoming, outgoing, reader, writer = await handshaken(port)
        with pytest.raises(ssl.SSLWantReadError):
            tls.unwrap()
        writer.write(outgoing.read())
        await asyncio.wait_for(reader.read(), 10)
        writer.close()
    assert lines_of(stream) == []


async def test_metrics_tell_when_the_certificate_expires_also_a_new_one():
    async def expiry(port: int) -> float:
        url = f"https://127.0.0.1:{port}/metrics"
        async with aiohttp.request("GET", url, connector=aiohttp.TCPConnector(ssl=trusting(AUTHORITY))) as answer:
            lines = (await answer.text()).splitlines()
        (line,) = [one for one in lines if one.startswith("tritonembed_certificate_expiry_timestamp_seconds ")]
        return float(line.rpartition(" ")[2])

    async with serving() as (_, http_port, parent):
        ends = x509.load_pem_x509_certificate(CERTIFICATE.encode()).not_valid_after_utc.timestamp()
        assert await expiry(http_port) == ends
        later, key = AUTHORITY.sign(days=(-1, 90))
        parent.report("tls", pems=asdict(Pems(later, key, None)))
        ends = x509.load_pem_x509_certificate(later.encode()).not_valid_after_utc.timestamp()
        while await expiry(http_port) != ends:
            await asyncio.sleep(0.01)
