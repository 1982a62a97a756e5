"""`serve --xds-port`: a real gRPC client and a real Envoy find the servers over xDS, and follow their states."""

import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.fakes.certificates import Files
from tests.fakes.threaded import fake_triton
from tests.fakes.triton import FakeTriton, infer_request
from tests.integration.serve import Serve, serving
from tests.unit.manager.router.control.envoy.running import until_live, write
from tritonclient.grpc import service_pb2_grpc

from tritonembed_manager.router.control.envoy.settings import find_envoy
from tritonembed_perf.server import free_ports

MARK = ("x-mark", "of this test")
CLIENT = f"""
import sys
import grpc
from tests.fakes.triton import infer_request
from tritonclient.grpc import service_pb2_grpc

with grpc.insecure_channel("xds:///embedding") as channel:
    infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
    for line in sys.stdin:
        try:
            print(infer(infer_request(b"a text"), timeout=20, metadata=[{MARK}]).model_name, flush=True)
        except grpc.RpcError as error:
            print(error.code().name, error.details(), flush=True)
"""
Servers = tuple[FakeTriton, FakeTriton]
Ask = Callable[[], str]


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with fake_triton() as one, fake_triton() as other:
        yield one, other


@pytest.fixture(scope="module")
def manager(servers: Servers) -> Iterator[tuple[Serve, int]]:
    """The manager, and its port of xDS."""
    [port] = free_ports(1)
    attached = [option for server in servers for option in ("--server", server.address)]
    options = ("--load-balancing=least_loaded", f"--xds-port={port}", "--health-interval=0.1")
    with serving("--model=m", *attached, *options) as started:
        yield started, port


PLAIN = {"type": "insecure"}


@contextmanager
def grpc_client(port: int, credentials: dict[str, Any] = PLAIN) -> Iterator[Ask]:
    """Sends a request without any proxy, from a process of its own: gRPC reads its bootstrap once."""
    bootstrap = {
        "xds_servers": [
            {
                "server_uri": f"127.0.0.1:{port}",
                "channel_creds": [credentials],
                "server_features": ["xds_v3"],
            }
        ],
        "node": {"id": "a-client"},
    }
    process = subprocess.Popen(
        [sys.executable, "-c", CLIENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "GRPC_XDS_BOOTSTRAP_CONFIG": json.dumps(bootstrap),
            # The current folder counts only without PYTHONSAFEPATH.
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
    )
    asking, answers = process.stdin, process.stdout
    assert asking is not None
    assert answers is not None

    def ask() -> str:
        asking.write("again\n")
        asking.flush()
        return answers.readline().strip()

    try:
        yield ask
    finally:
        asking.close()
        process.wait(30)
        answers.close()


@contextmanager
def own_envoy(port: int, folder: Path) -> Iterator[Ask]:
    """Sends a request through an Envoy whose only cluster comes from the manager."""
    own, admin = free_ports(2)
    process = subprocess.Popen(
        [
            *(find_envoy(None), "-c", write(folder / "envoy.json", envoy_configuration(own, admin, port))),
            *("--disable-hot-restart", "--concurrency", "1", "--log-level", "error"),
        ]
    )
    try:
        until_live(process, admin)
        with grpc.insecure_channel(f"127.0.0.1:{own}") as channel:

            def ask() -> str:
                try:
                    infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
                    return str(infer(infer_request(b"a text"), timeout=20, metadata=[MARK]).model_name)
                except grpc.RpcError as error:
                    return f"{error.code().name} {error.details()}"

            yield ask
    finally:
        process.kill()
        process.wait()


def envoy_configuration(port: int, admin: int, xds: int) -> dict[str, Any]:
    """As in docs/guides/envoy.md."""
    types = "type.googleapis.com/envoy.extensions"
    http2 = {
        f"{types[20:]}.upstreams.http.v3.HttpProtocolOptions": {
            "@type": f"{types}.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
    }
    route = {"match": {"prefix": "/"}, "route": {"cluster": "embedding", "timeout": "0s"}}
    manager = {
        "@type": f"{types}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "embedding",
        "codec_type": "HTTP2",
        "route_config": {
            # The cluster comes later.
            "validate_clusters": False,
            "virtual_hosts": [{"name": "embedding", "domains": ["*"], "routes": [route]}],
        },
        "http_filters": [{"name": "router", "typed_config": {"@type": f"{types}.filters.http.router.v3.Router"}}],
    }
    return {
        "node": {"id": "an-envoy", "cluster": "envoys"},
        "admin": {"address": address(admin)},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "tritonembed"}}],
            },
            "cds_config": {"ads": {}, "resource_api_version": "V3"},
        },
        "static_resources": {
            "listeners": [
                {
                    "name": "embedding",
                    "address": address(port),
                    "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
                }
            ],
            "clusters": [
                {
                    "name": "tritonembed",
                    "type": "STATIC",
                    "typed_extension_protocol_options": http2,
                    "load_assignment": {
                        "cluster_name": "tritonembed",
                        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(xds)}}]}],
                    },
                }
            ],
        },
    }


def address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def reached(servers: Servers, ask: Ask) -> set[int] | None:
    """Which servers get some of four requests; None if a request fails."""

    def counts() -> list[int]:
        return [sum(dict(seen).get(MARK[0]) == MARK[1] for seen in server.metadata) for server in servers]

    before = counts()
    if [ask() for _ in range(4)] != ["embedding"] * 4:
        return None
    return {index for index, (now, then) in enumerate(zip(counts(), before, strict=True)) if now > then}


def follows_the_states(manager: Serve, servers: Servers, ask: Ask) -> None:
    manager.until(lambda: reached(servers, ask) == {0, 1}, 30)
    # It fails every request.
    servers[1].loaded = False
    try:
        # Four requests can all go to one server by chance, before the news has come.
        manager.until(lambda: all(reached(servers, ask) == {0} for _ in range(4)), 30)
    finally:
        servers[1].loaded = True
    manager.until(lambda: reached(servers, ask) == {0, 1}, 30)


def test_a_grpc_client_follows_the_servers(manager: tuple[Serve, int], servers: Servers) -> None:
    started, port = manager
    with grpc_client(port) as ask:
        follows_the_states(started, servers, ask)


def test_an_envoy_follows_the_servers(manager: tuple[Serve, int], servers: Servers, tmp_path: Path) -> None:
    started, port = manager
    with own_envoy(port, tmp_path) as ask:
        follows_the_states(started, servers, ask)


def serial(port: int, ca: Path) -> str:
    """Of the certificate that new connections get."""
    context = ssl.create_default_context(cafile=ca)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as encrypted,
    ):
        return str(encrypted.getpeercert()["serialNumber"])  # type: ignore[index]


def test_a_renewed_certificate_counts_for_new_clients_and_costs_no_stream(servers: Servers, tmp_path: Path) -> None:
    files, [port] = Files(tmp_path), free_ports(1)
    attached = [option for server in servers for option in ("--server", server.address)]
    credentials = {"type": "tls", "config": {"ca_certificate_file": str(files.ca)}}
    with serving("--model=m", *attached, *files.options, f"--xds-port={port}", "--health-interval=0.1") as manager:
        with grpc_client(port, credentials) as early:
            manager.until(lambda: reached(servers, early) == {0, 1}, 30)
            before = serial(port, files.ca)
            files.renew()
            manager.until(lambda: serial(port, files.ca) != before, 30)
            follows_the_states(manager, servers, early)
        with grpc_client(port, credentials) as late:
            manager.until(lambda: reached(servers, late) == {0, 1}, 30)
