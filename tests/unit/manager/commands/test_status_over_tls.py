"""`status` over TLS: what it trusts, and its line if there is no answer."""

import json
import ssl
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from tests.fakes.certificates import Authority, Files
from tests.fakes.threaded import http_server
from typer.testing import CliRunner

from tritonembed_manager.commands.app import app
from tritonembed_manager.commands.status import fetch
from tritonembed_manager.server.client_tls import ClientTls
from tritonembed_protocol.tls import CLOSES


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"path": self.path}).encode())

    def log_message(self, *_):
        pass


class Quiet(HTTPServer):
    def handle_error(self, *_):
        """A handshake failed, as some tests want."""


def listening(files: Files | None, client_ca: Files | None = None):
    """A server's host:port. files: its certificate; None for plain text."""
    server = Quiet(("127.0.0.1", 0), Answer)
    if files is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.certificate, files.key)
        if client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(client_ca.ca)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    return http_server(server)


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def line(*arguments) -> str:
    """What the command prints if it fails."""
    result = CliRunner().invoke(app, ["status", *map(str, arguments)])
    assert result.exit_code == 1
    return result.output.rpartition(": ")[2].strip()


def test_the_status_comes_over_tls_to_a_client_with_a_certificate(files):
    chain = (files.certificate, files.key)
    tls = ClientTls.read((files.ca, *chain), ("--tls-ca", "--tls-client-cert", "--tls-client-key"))
    with listening(files, files) as address:
        assert fetch(f"https://{address}", tls.context()) == {"path": "/status"}


def test_each_failure_of_tls_is_one_line(files, tmp_path):
    other = tmp_path / "other.pem"
    other.write_text(Authority().pem)
    with listening(files) as address:
        at = f"--manager=https://{address}"
        assert line(at, f"--tls-ca={other}") == "the server's certificate is not signed by a trusted authority"
        assert line(at) == "the server's certificate is not signed by a trusted authority"
        assert line(f"--manager={address}") == CLOSES.rpartition(": ")[2]
    with listening(None) as address:
        assert line(f"--manager=https://{address}", f"--tls-ca={files.ca}") == "the server does not speak TLS"
    files.renew(host="127.0.0.9")
    with listening(files) as address:
        at = (f"--manager=https://{address}", f"--tls-ca={files.ca}")
        assert line(*at) == "the server's certificate is for another host name"
    files.renew(days=(-2, -1))
    with listening(files) as address:
        at = (f"--manager=https://{address}", f"--tls-ca={files.ca}")
        assert line(*at) == "the server's certificate has expired"


def test_files_that_can_not_be_used_are_one_line(files):
    result = CliRunner().invoke(app, ["status", "--manager=https://127.0.0.1:1", f"--tls-client-cert={files.ca}"])
    assert (result.exit_code, result.output) == (
        2,
        "tritonembed-manager: --tls-client-cert and --tls-client-key go together\n",
    )
