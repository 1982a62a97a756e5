"""Envoy with the manager's configuration in one file, as a test changes it."""

import json
import subprocess
import time
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tritonembed_manager.router.control.envoy import clusters, configuration, listeners
from tritonembed_manager.router.control.envoy.settings import find_envoy
from tritonembed_manager.router.control.envoy.tenants import EnvoyTenants
from tritonembed_manager.router.interfaces import ServerState
from tritonembed_manager.router.link import Sockets
from tritonembed_perf.server import free_ports


def whole_configuration(
    folder: Path,
    *,
    policy: Any = "least_loaded",
    max_bytes: int = 1 << 20,
    sizes: Iterable[int] = (),
    tenants: EnvoyTenants | None = None,
    **listener: Any,
) -> Any:
    """Listeners, routes and clusters in a bootstrap. Only the servers and certificates stay in files."""
    endpoint = clusters.Endpoint("127.0.0.1", 8001, ServerState.READY)
    write(folder / "endpoints.json", {"version_info": "1", "resources": [clusters.endpoints([endpoint])]})
    settings = listeners.ListenerSettings("127.0.0.1", 1, 2, 10.0, **listener)
    found = configuration.bootstrap(folder, 10_000)
    del found["dynamic_resources"]
    both = listeners.listeners(settings, folder)
    manager = both[0]["filter_chains"][0]["filters"][0]["typed_config"]
    del manager["rds"]
    manager["route_config"] = {
        key: value for key, value in listeners.grpc_routes(60, max_bytes, sizes, tenants).items() if key != "@type"
    }
    all_clusters = clusters.clusters(policy, 4096, folder / "endpoints.json", Sockets(folder), 2)
    return {**found, "static_resources": {"listeners": both, "clusters": all_clusters}}


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def validate(path: Path) -> str:
    """Envoy's complaint about a bootstrap; empty if it is valid."""
    command = [find_envoy(None), "--mode", "validate", "-c", path, "--disable-hot-restart", "--log-level", "error"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@contextmanager
def envoy(configuration: Any, folder: Path, inherited: Sequence[int] = ()) -> Iterator[int]:
    """A running Envoy; the port of its gRPC listener. inherited: descriptors that it gets."""
    port, http_port, admin = free_ports(3)
    for listener, its_port in zip(configuration["static_resources"]["listeners"], (port, http_port), strict=True):
        listener["address"]["socket_address"]["port_value"] = its_port
    configuration["admin"] = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin}}}
    path = write(folder / "bootstrap.json", configuration)
    command = [find_envoy(None), "-c", path, "--disable-hot-restart", "--concurrency", "1", "--log-level", "error"]
    process = subprocess.Popen(command, pass_fds=inherited)
    try:
        until_live(process, admin)
        yield port
    finally:
        process.kill()
        process.wait()


def until_live(process: "subprocess.Popen[bytes]", admin: int) -> None:
    end = time.monotonic() + 60
    while True:
        assert process.poll() is None
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{admin}/ready", timeout=5):
                return
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.05)
