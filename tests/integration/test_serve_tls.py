"""A real manager whose ports speak TLS, over a fake server, and the clients that reach it."""

import asyncio
import json
import socket
import ssl
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import tritonclient.grpc
from tests.fakes.certificates import Authority, Files
from tests.fakes.threaded import fake_triton
from tests.fakes.triton import vector
from tests.integration.serve import Serve, serving

from tritonembed import AsyncEmbeddingClient, EmbeddingClient, UnavailableError

TEXTS = ["a sentence", "another"]
EXPECTED = np.array([vector(text.encode()) for text in TEXTS])


def with_tritonclient(manager: Serve, ca: Path) -> None:
    text = tritonclient.grpc.InferInput("text", [len(TEXTS), 1], "BYTES")
    text.set_data_from_numpy(np.array([[text.encode()] for text in TEXTS], dtype=np.object_))
    with tritonclient.grpc.InferenceServerClient(manager.target, ssl=True, root_certificates=str(ca)) as client:
        rows = client.infer("embedding", [text], client_timeout=30).as_numpy("embedding").reshape(-1)
    np.testing.assert_array_equal(np.stack([np.frombuffer(row, "<f4") for row in rows]), EXPECTED)


def with_openai(manager: Serve, context: ssl.SSLContext) -> None:
    url = f"https://127.0.0.1:{manager.http_port}/v1"
    with openai.OpenAI(base_url=url, api_key="none", http_client=httpx.Client(verify=context)) as client:
        found = client.embeddings.create(model="m", input=TEXTS).data
    np.testing.assert_allclose([item.embedding for item in found], EXPECTED, atol=1e-6)


class Load:
    """Requests over gRPC and HTTP, on new and on kept connections, until the end of the `with`."""

    def __init__(self, manager: Serve, files: Files) -> None:
        self._manager = manager
        self._files = files
        self._over = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.done = 0
        self.errors: list[str] = []

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._thread.join()

    async def _run(self) -> None:
        async with self._grpc() as kept, self._http() as kept_http:
            await asyncio.gather(
                *(self._repeat(self._embed, kept) for _ in range(2)),
                self._repeat(self._embed, None),
                self._repeat(self._post, kept_http),
                self._repeat(self._post, None),
            )

    async def _repeat(self, send: Any, kept: Any) -> None:
        while not self._over:
            try:
                await send(kept)
                self.done += 1
            except Exception as error:  # every failure counts
                self.errors.append(f"{type(error).__name__}: {error}")
                return

    async def _embed(self, kept: AsyncEmbeddingClient | None) -> None:
        if kept is not None:
            await kept.embed(TEXTS, timeout=30)
            return
        async with self._grpc() as client:
            await client.embed(TEXTS, timeout=30)

    async def _post(self, kept: httpx.AsyncClient | None) -> None:
        if kept is not None:
            (await kept.post("/v1/embeddings", json={"input": TEXTS})).raise_for_status()
            return
        async with self._http() as client:
            (await client.post("/v1/embeddings", json={"input": TEXTS})).raise_for_status()

    def _grpc(self) -> AsyncEmbeddingClient:
        return AsyncEmbeddingClient(self._manager.target, tls=True, root_certificates=self._files.ca)

    def _http(self) -> httpx.AsyncClient:
        url = f"https://127.0.0.1:{self._manager.http_port}"
        return httpx.AsyncClient(base_url=url, verify=trusting(self._files), timeout=30)


def trusting(files: Files) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=files.ca)


def status(manager: Serve, files: Files) -> Any:
    url = f"https://127.0.0.1:{manager.http_port}/status"
    with urllib.request.urlopen(url, context=trusting(files), timeout=10) as answer:
        return json.load(answer)


def serial(manager: Serve, files: Files) -> str:
    """Of the certificate that new HTTP connections get."""
    with (
        socket.create_connection(("127.0.0.1", manager.http_port), timeout=10) as plain,
        trusting(files).wrap_socket(plain, server_hostname="127.0.0.1") as encrypted,
    ):
        return str(encrypted.getpeercert()["serialNumber"])  # type: ignore[index]


@pytest.mark.parametrize("data_plane", ["workers", "envoy"])
def test_clients_get_vectors_and_new_certificates_cost_no_request(tmp_path: Path, data_plane: str) -> None:
    files = Files(tmp_path)
    options = ["--workers=2", f"--data-plane={data_plane}", *files.options]
    with (
        fake_triton() as server,
        serving("--model=m", "--server", server.address, *options) as manager,
    ):
        with_tritonclient(manager, files.ca)
        with_openai(manager, trusting(files))
        # It is sent once per second.
        manager.until(lambda: status(manager, files)["workers"]["ready"] == 2, 20)
        with Load(manager, files) as load:
            for count in range(1, 4):
                before = serial(manager, files)
                files.renew()
                manager.until(lambda count=count: manager.log().count("new connections get") == count, 20)
                # Both workers share the port.
                manager.until(lambda before=before: all(serial(manager, files) != before for _ in range(8)), 20)
            files.key.write_text("in the middle of being written")
            manager.until(lambda: "the earlier certificate stays in use" in manager.log(), 20)
            done = load.done
            manager.until(lambda: load.errors or load.done > done + 20, 20)
        assert not load.errors
        # Whoever speaks no TLS, or trusts another authority, disturbs nobody and is not in the log.
        with EmbeddingClient(manager.target) as plain, pytest.raises(UnavailableError):
            plain.embed(TEXTS, timeout=10)
        other = tmp_path / "other.pem"
        other.write_text(Authority().pem)
        with (
            EmbeddingClient(manager.target, tls=True, root_certificates=other) as mistrusting,
            pytest.raises(UnavailableError),
        ):
            mistrusting.embed(TEXTS, timeout=10)
        with pytest.raises(ConnectionError):
            urllib.request.urlopen(f"http://127.0.0.1:{manager.http_port}/status", timeout=10)
        with_tritonclient(manager, files.ca)
        log = manager.log()
        assert log.count("the earlier certificate stays in use") == 1
        assert not any(word in log for word in ("Traceback", "PRIVATE", "andshake", str(tmp_path)))
        assert len([line for line in log.splitlines() if "ready" not in line.lower()]) < 12, log


@pytest.mark.parametrize("data_plane", ["workers", "envoy"])
def test_a_client_needs_a_certificate_if_the_manager_has_a_client_ca(tmp_path: Path, data_plane: str) -> None:
    files = Files(tmp_path)
    clients = tmp_path / "clients"
    clients.mkdir()
    known = Files(clients)
    own = [*files.options, f"--tls-client-ca={known.ca}"]
    with (
        fake_triton() as server,
        serving("--model=m", "--server", server.address, *own, f"--data-plane={data_plane}") as manager,
    ):
        chain = {"private_key": known.key, "certificate_chain": known.certificate}
        with EmbeddingClient(manager.target, tls=True, root_certificates=files.ca, **chain) as client:
            np.testing.assert_array_equal(client.embed(TEXTS, timeout=30).embeddings, EXPECTED)
        context = trusting(files)
        context.load_cert_chain(known.certificate, known.key)
        with_openai(manager, context)
        with (
            EmbeddingClient(manager.target, tls=True, root_certificates=files.ca) as unknown,
            pytest.raises(UnavailableError),
        ):
            unknown.embed(TEXTS, timeout=10)
        with pytest.raises((ssl.SSLError, OSError), match=r"(?i)certificate required|closed|reset|EOF"):
            status(manager, files)
        assert "Traceback" not in manager.log()


def test_servers_over_tls_and_the_commands(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("server", "manager")]
    for folder in folders:
        folder.mkdir()
    servers, managers = map(Files, folders)
    listed = tmp_path / "servers"
    own = [f"--server-ca={servers.ca}", f"--server-cert={managers.certificate}", f"--server-key={managers.key}"]
    with fake_triton(credentials=servers.credentials(managers.authority.pem)) as server, fake_triton() as plain:
        listed.write_text(f"grpcs://{server.address}\ngrpcs://{plain.address}\n")
        with serving("--model=m", f"--servers-file={listed}", *own, *managers.options) as manager:
            at = f"--manager=https://127.0.0.1:{manager.http_port}"
            found = run("tritonembed_manager", "status", "--json", at, f"--tls-ca={managers.ca}")
            assert [(each["id"], each["state"], each["why"]) for each in json.loads(found)["servers"]] == [
                (f"grpcs://{server.address}", "ready", ""),
                (f"grpcs://{plain.address}", "unhealthy", "the server does not speak TLS"),
            ]
            trust = ("--server", f"grpcs://{manager.target}", f"--tls-root-certificates={managers.ca}")
            lines = run("tritonembed", "embed", "--stream", *trust, *TEXTS).splitlines()
            assert [json.loads(line)["embedding"] for line in lines] == pytest.approx(EXPECTED, abs=1e-6)
            assert server.requests
            line = "tritonembed: UnavailableError: the server's certificate is not signed by a trusted authority"
            wrong = ("--server", f"grpcs://{manager.target}", f"--tls-root-certificates={servers.ca}")
            # Before it, gRPC's core may write a line of its own.
            assert run("tritonembed", "embed", *wrong, "a text", fails=1).splitlines()[-1] == line
            # gRPC's core would write a line per handshake with the plain server.
            assert "ssl_transport" not in manager.log()


def test_files_for_servers_are_read_again_and_a_dns_name_is_verified(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("server", "manager")]
    for folder in folders:
        folder.mkdir()
    servers, managers = map(Files, folders)
    # Not for the address, only for the name that is looked up.
    servers.renew(name="localhost", host="10.9.9.9")
    own = [f"--server-ca={servers.ca}", f"--server-cert={managers.certificate}", f"--server-key={managers.key}"]
    options = [*own, "--workers=2", "--health-interval=0.2"]
    with fake_triton(credentials=servers.credentials(managers.authority.pem)) as server:
        port = server.address.rpartition(":")[2]
        with serving("--model=m", f"--servers-dns=grpcs://localhost:{port}", *options) as manager:
            assert f"grpcs://localhost@127.0.0.1:{port}" in [each["id"] for each in manager.status()["servers"]]
            with EmbeddingClient(manager.target) as client:
                np.testing.assert_array_equal(client.embed(TEXTS, timeout=30).embeddings, EXPECTED)
                # The server does not trust this certificate, so new connections fail.
                managers.renew(Authority())
                manager.until(lambda: "new connections to grpcs:// servers" in manager.log(), 20)
                manager.until(lambda: "ready" not in manager.states(), 20)
                managers.renew()
                manager.until(lambda: "ready" in manager.states(), 20)
                np.testing.assert_array_equal(client.embed(TEXTS, timeout=30).embeddings, EXPECTED)
            log = manager.log()
            assert not any(word in log for word in ("Traceback", "PRIVATE", str(tmp_path)))


def run(module: str, *arguments: str, fails: int = 0) -> str:
    """What a command writes to stdout, or to stderr if it fails with this exit code. It writes nothing else."""
    program = [sys.executable, "-c", f"from {module}.cli import main; main()"]
    done = subprocess.run([*program, *arguments], capture_output=True, text=True, timeout=60)
    shown, other = (done.stderr, done.stdout) if fails else (done.stdout, done.stderr)
    assert (done.returncode, other) == (fails, "")
    return shown
