import subprocess

import grpc
import pytest
from tests.fakes.certificates import Authority, Files
from tests.unit.client.fake_server import FakeServer

from tritonembed import AsyncEmbeddingClient, EmbeddingClient, UnavailableError
from tritonembed_protocol.tls import CLOSES


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A certificate for localhost with its key, made by openssl."""
    folder = tmp_path_factory.mktemp("keys")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    return folder / "key.pem", folder / "certificate.pem"


@pytest.fixture(scope="module")
def secure(keys):
    key, certificate = (path.read_bytes() for path in keys)
    # The server requires a certificate from its clients too.
    credentials = grpc.ssl_server_credentials([(key, certificate)], certificate, require_client_auth=True)
    server = FakeServer(credentials)
    yield server
    server.close()


@pytest.mark.parametrize("read", [lambda path: path, str, lambda path: path.read_bytes()])
def test_tls_takes_keys_as_paths_and_as_bytes(secure, keys, read):
    key, certificate = map(read, keys)
    with EmbeddingClient(
        secure.target, tls=True, root_certificates=certificate, private_key=key, certificate_chain=certificate
    ) as client:
        assert client.embed(["1"]).num_tokens.tolist() == [1]


async def test_tls_works_in_asyncio(secure, keys):
    key, certificate = keys
    async with AsyncEmbeddingClient(
        secure.target, tls=True, root_certificates=certificate, private_key=key, certificate_chain=certificate
    ) as client:
        assert (await client.embed(["1"])).num_tokens.tolist() == [1]


def test_an_address_may_ask_for_tls(secure, keys):
    key, certificate = keys
    files = {"root_certificates": certificate, "private_key": key, "certificate_chain": certificate}
    with EmbeddingClient(f"grpcs://{secure.target}", **files) as client:
        assert client.embed(["1"]).num_tokens.tolist() == [1]
    with pytest.raises(ValueError, match="grpcs:// goes with all servers or none"):
        EmbeddingClient(["grpcs://a:1", "b:1"])
    with pytest.raises(ValueError, match="70000 is not a port"):
        EmbeddingClient("grpcs://a:70000")


@pytest.fixture
def refused(tmp_path):
    """The reason why a client gets no answer from a server. signed: of the server's certificate."""

    def reason(client_ca=None, client=None, trusts=None, tls=True, with_tls=True, **signed):
        files = Files(tmp_path)
        files.renew(**signed)
        server = FakeServer(files.credentials(client_ca) if with_tls else None)
        settings = {"tls": True, "root_certificates": (trusts or files.authority).pem.encode()} if tls else {}
        if client is not None:
            settings |= zip(("certificate_chain", "private_key"), (pem.encode() for pem in client), strict=True)
        try:
            with EmbeddingClient(server.target, **settings) as client, pytest.raises(UnavailableError) as caught:
                client.embed(["1"], timeout=10)
            return str(caught.value)
        finally:
            server.close()

    return reason


OF_CLIENTS = Authority("clients")


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"days": (-2, -1)}, "the server's certificate has expired"),
        ({"trusts": Authority()}, "the server's certificate is not signed by a trusted authority"),
        ({"host": "127.0.0.9"}, "the server's certificate is for another host name"),
        ({"with_tls": False}, "the server does not speak TLS"),
        ({"tls": False}, CLOSES),
        ({"client_ca": Authority().pem}, CLOSES),
        ({"client_ca": OF_CLIENTS.pem, "client": OF_CLIENTS.sign(days=(-2, -1))}, CLOSES),
    ],
    ids=["expired", "untrusted", "another host", "plain server", "plain client", "no certificate", "expired client"],
)
def test_a_handshake_that_fails_is_one_plain_reason(refused, setting, reason):
    assert refused(**setting) == reason


def test_tls_settings_that_do_not_fit_together_are_value_errors(keys):
    key, certificate = keys
    with pytest.raises(ValueError, match="tls=True"):
        EmbeddingClient(root_certificates=certificate)
    with pytest.raises(ValueError, match="go together"):
        EmbeddingClient(tls=True, private_key=key)


@pytest.mark.parametrize("metadata", [{"Authorization": "Bearer 1"}, [("authorization", "Bearer 1")]])
def test_metadata_of_client_and_call_is_sent(server, metadata):
    with EmbeddingClient(server.target, metadata=metadata) as client:
        client.embed(["1"], metadata={"x-trace": "2", "raw-bin": b"\xff"})
        client.embed(["1"])
    assert server.metadata[0]["authorization"] == "Bearer 1"
    assert server.metadata[0]["x-trace"] == "2"
    assert server.metadata[0]["raw-bin"] == b"\xff"
    assert server.metadata[1]["authorization"] == "Bearer 1"
    assert "x-trace" not in server.metadata[1]


@pytest.mark.parametrize(
    "pair", [("token", "secret\n"), ("token", "sécret"), ("token", b"secret"), ("x-bin", "secret")]
)
def test_metadata_that_cannot_be_sent_is_refused_without_showing_its_value(pair):
    with pytest.raises(ValueError, match=f"metadata {pair[0]}: ") as caught:
        EmbeddingClient(metadata=[pair])
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "two words", "grpc-timeout", "naïve"])
def test_metadata_names_that_http2_forbids_are_refused(name):
    with pytest.raises(ValueError, match="not a valid header name"):
        EmbeddingClient(metadata={name: "value"})
