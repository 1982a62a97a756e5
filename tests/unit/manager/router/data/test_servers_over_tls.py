"""Servers that are reached over TLS: requests, checks, and the reasons of their failures."""

import pytest
from tests.fakes.certificates import Authority, Files
from tests.fakes.data_plane import view
from tests.fakes.triton import FakeTriton, infer_request, texts

from tritonembed_manager.router.data.load_table import LoadTable
from tritonembed_manager.router.data.pool import UpstreamPool
from tritonembed_manager.server.client_tls import ClientTls
from tritonembed_manager.server.probe import GrpcProbe, ProbeError


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
        probe = GrpcProbe(address, tls)
        assert len(await probe.vectors(10)) == 3
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
    probe = GrpcProbe(address, tls)
    with pytest.raises(ProbeError) as caught:
        await probe.vectors(10)
    await probe.close()
    return caught.value.why


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
