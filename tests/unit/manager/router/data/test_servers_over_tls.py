"""Servers that are reached over TLS: requests, checks, and the reasons of their failures."""

import grpc
import pytest
from tests.fakes.certificates import Authority, Files
from tests.fakes.data_plane import view
from tests.fakes.triton import FakeTriton, infer_request, texts

from tritonembed_manager.router.data.load_table import LoadTable
from tritonembed_manager.router.data.pool import UpstreamPool
from tritonembed_manager.server.client_tls import ClientTls
from tritonembed_manager.server.probe import GrpcProbe, ProbeError
from tritonembed_protocol.types import HEALTH_CHECK_ID


def read(ca: Files, client: Files | None = None) -> ClientTls:
    files = (ca.ca, client and client.certificate, client and client.key)
    return ClientTls.read(files, ("--server-ca", "--server-cert", "--server-key"))


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


@pytest.fixture
def client(tmp_path):
    folder = tmp_path / "client"
    folder.mkdir()
    return Files(folder)


async def test_requests_and_checks_go_over_tls_with_a_certificate(files, client):
    tls = read(files, client)
    async with FakeTriton(files.credentials(client.authority.pem)) as fake:
        address = f"grpcs://{fake.address}"
        probe = GrpcProbe(address, lambda: tls)
        assert len(await probe.vectors(10)) == 3
        assert [request.id for request in fake.requests] == [HEALTH_CHECK_ID]
        await probe.close()
        table = LoadTable.create(1, 8)
        pool = UpstreamPool(table.row(0), 10, lambda *_: None, tls=tls)
        pool.update([view("a", 0, address)])
        [server] = pool.servers()
        # Also after its channels were replaced.
        for text in (b"one", b"two"):
            attempt = server.begin(infer_request(text).SerializeToString(), 10, None, 1)
            await attempt.call
            server.end(attempt)
            server.reconnect()
        assert [texts(request) for request in fake.requests[1:]] == [[b"one"], [b"two"]]
        await pool.close()
        table.close()


async def reason(address: str, tls: ClientTls) -> str:
    probe = GrpcProbe(address, lambda: tls)
    with pytest.raises(ProbeError) as caught:
        await probe.vectors(10)
    await probe.close()
    return str(caught.value)


async def test_a_check_that_fails_because_of_tls_has_the_reason(files, client, tmp_path):
    async with FakeTriton(files.credentials()) as fake:
        address = f"grpcs://{fake.address}"
        untrusted = "the server's certificate is not signed by a trusted authority"
        assert await reason(address, read(client)) == untrusted
        assert await reason(address, ClientTls()) == untrusted
        assert "perhaps it speaks TLS" in await reason(fake.address, ClientTls())
    async with FakeTriton() as fake:
        assert await reason(f"grpcs://{fake.address}", read(files)) == "the server does not speak TLS"
    async with FakeTriton(files.credentials(Authority().pem)) as fake:
        assert "requires another client certificate" in await reason(f"grpcs://{fake.address}", read(files, client))
    files.renew(days=(-2, -1))
    async with FakeTriton(files.credentials()) as fake:
        assert await reason(f"grpcs://{fake.address}", read(files)) == "the server's certificate has expired"


async def test_a_certificate_for_a_name_is_checked_against_that_name(tmp_path):
    folder = tmp_path / "named"
    folder.mkdir()
    files = Files(folder)
    files.renew(name="triton.example", host="10.9.9.9")
    async with FakeTriton(files.credentials()) as fake:
        probe = GrpcProbe(f"grpcs://triton.example@{fake.address}", lambda: read(files))
        assert len(await probe.vectors(10)) == 3
        await probe.close()
        for wrong in (f"grpcs://{fake.address}", f"grpcs://another.example@{fake.address}"):
            assert await reason(wrong, read(files)) == "the server's certificate is for another host name"


async def test_new_files_are_used_for_new_connections_and_requests_in_flight_finish(files, tmp_path):
    folder = tmp_path / "next"
    folder.mkdir()
    later = Files(folder)
    now = read(files)
    async with FakeTriton(files.credentials()) as fake:
        address = f"grpcs://{fake.address}"
        probe = GrpcProbe(address, lambda: now)
        await probe.vectors(10)
        table = LoadTable.create(1, 8)
        pool = UpstreamPool(table.row(0), 10, lambda *_: None, tls=now)
        pool.update([view("a", 0, address)])
        [server] = pool.servers()
        fake.hang()
        attempt = server.begin(infer_request(b"before").SerializeToString(), 30, None, 1)
        await fake.wait_inside(1)
        now = read(later)
        pool.set_tls(now)
        fake.release()
        assert await attempt.call
        server.end(attempt)
        # The server's certificate is not of the new authority.
        with pytest.raises(ProbeError, match="not signed by a trusted authority"):
            await probe.vectors(10)
        refused = server.begin(infer_request(b"after").SerializeToString(), 10, None, 1)
        with pytest.raises(grpc.aio.AioRpcError):
            await refused.call
        server.end(refused)
        now = read(files)
        pool.set_tls(now)
        assert len(await probe.vectors(10)) == 3
        again = server.begin(infer_request(b"again").SerializeToString(), 10, None, 1)
        assert await again.call
        server.end(again)
        await probe.close()
        await pool.close()
        table.close()
