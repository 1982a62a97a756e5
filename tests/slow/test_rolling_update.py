"""Servers are replaced one by one behind a DNS name while clients send: no request is lost.

Hosts are network namespaces, and the name is in a real DNS server, as in Kubernetes: a host's server leaves the name,
serves for a pause, gets SIGTERM, and a new host's server joins the name once it is ready. The servers are Triton's,
with static embeddings, which start in seconds. It needs root, and dnsmasq (Debian's package dnsmasq-base).
"""

import os
import signal
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from tests.integration.serve import MANAGER, START_LIMIT_S, Load, Serve, end_soon

from tritonembed import EmbeddingClient
from tritonembed_perf.families.static import model2vec

NAME = "servers.embeddings.test"
PORTS = "50051/8000/8002"
# The name's records may be kept for no time here, and managers look up every 5 s.
PAUSE_S = 7
TEXTS = ["a cat sits on the mat", "stock prices fell sharply today"]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


class Host:
    """A network namespace with an address of its own, and a server in it."""

    def __init__(self, number: int, model: Path, folder: Path) -> None:
        self._name = f"tritonembed-{os.getpid()}-{number}"
        self.address = f"10.203.{number}.2"
        self._log = (folder / f"server-{number}.log").open("w+")
        link = f"te{os.getpid() % 100000}-{number}"
        ip("netns", "add", self._name)
        ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", self._name)
        ip("addr", "add", f"10.203.{number}.1/30", "dev", link)
        ip("link", "set", link, "up")
        for arguments in (f"addr add {self.address}/30 dev eth0", "link set eth0 up", "link set lo up"):
            ip("-n", self._name, *arguments.split())
        options = ["--host=0.0.0.0", "--metrics-host=0.0.0.0", "--device=cpu", "--no-reference"]
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", self._name, *MANAGER, "replica", f"--model={model}", *options],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=self._log,
            stderr=self._log,
            text=True,
        )

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def wait_ready(self) -> None:
        end = time.monotonic() + START_LIMIT_S
        while "READY grpc" not in self.log():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < end, self.log()
            time.sleep(0.1)

    def drain(self) -> int:
        """End the server with SIGTERM. Returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def close(self) -> None:
        end_soon(self.process, self.log)
        ip("netns", "del", self._name)
        self._log.close()


class Dns:
    """dnsmasq with one name, whose addresses can be changed. Nothing may be cached."""

    def __init__(self, folder: Path) -> None:
        self._hosts, self._settings = folder / "hosts", folder / "resolv.conf"
        # Its port is fixed, because resolv.conf names none: an address of loopback that nothing else listens on.
        address = f"127.{os.getpid() % 200 + 20}.0.53"
        self._hosts.write_text("")
        self._settings.write_text(f"nameserver {address}\n")
        options = [
            "--keep-in-foreground",
            "--no-resolv",
            "--no-hosts",
            "--bind-interfaces",
            "--local-ttl=0",
            "--user=root",
            "--conf-file=/dev/null",
            "--pid-file=",
        ]
        self._process = subprocess.Popen(
            ["dnsmasq", *options, f"--listen-address={address}", f"--addn-hosts={self._hosts}"],
            stderr=subprocess.DEVNULL,
        )

    def set(self, hosts: list[Host]) -> None:
        """The name stands for these hosts from now on."""
        self._hosts.write_text("".join(f"{host.address} {NAME}\n" for host in hosts))
        self._process.send_signal(signal.SIGHUP)

    def program(self) -> list[str]:
        """A command line that runs what follows it with this DNS server as its resolver."""
        script = f'mount --bind {self._settings} /etc/resolv.conf && exec "$@"'
        return ["unshare", "--mount", "sh", "-c", script, "sh"]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


class Checks:
    """A client that compares every vector with the first ones."""

    def __init__(self, target: str) -> None:
        self._client = EmbeddingClient(target)
        self._expected = self._client.embed(TEXTS).embeddings
        self._thread = threading.Thread(target=self._run)
        self._stopping = False
        self.done, self.wrong = 0, 0

    def __enter__(self) -> "Checks":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        self._thread.join()
        self._client.close()

    def _run(self) -> None:
        while not self._stopping:
            found = self._client.embed(TEXTS, timeout=60).embeddings
            self.wrong += not np.allclose(found, self._expected, atol=1e-5)
            self.done += 1


def addresses(manager: Serve) -> list[str]:
    return [one["address"] for one in manager.status()["servers"]]


@contextmanager
def following(dns: Dns, data_plane: str):
    """A manager of the servers behind the name."""
    options = ("--model=m", f"--servers-dns={NAME}:{PORTS}", "--load-balancing=least_loaded", "--health-interval=0.5")
    options += (f"--data-plane={data_plane}",)
    manager = Serve(*options, program=[*dns.program(), *MANAGER])
    try:
        yield manager
    finally:
        manager.end()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("data_plane", ["workers", "envoy"])
def test_no_request_is_lost_while_every_server_is_replaced(tmp_path, data_plane):
    model = tmp_path / "model"
    model.mkdir()
    model2vec(model)
    with ExitStack() as stack:
        dns = Dns(tmp_path)
        stack.callback(dns.close)

        def start(number: int) -> Host:
            host = Host(number, model, tmp_path)
            stack.callback(host.close)
            return host

        # The manager is there before any server, and waits for an address.
        manager = stack.enter_context(following(dns, data_plane))
        old = [start(1), start(2)]
        manager.until(lambda: "does not resolve" in manager.log())
        for host in old:
            host.wait_ready()
        dns.set(old)
        manager.wait_ready()
        manager.until(lambda: manager.states() == ["ready", "ready"])

        load = Load(manager.target, 8, rest_s=0.02)
        with load, Checks(manager.target) as checks:
            load.answers(50)
            new: list[Host] = []
            for index, host in enumerate(old):
                # As a pod ends: out of the name, a pause, SIGTERM. Its successor joins the name once it is ready.
                dns.set([*old[index + 1 :], *new])
                time.sleep(PAUSE_S)
                manager.until(lambda host=host: f"{host.address}:50051" not in addresses(manager))
                assert host.drain() == 0
                new.append(start(3 + index))
                new[-1].wait_ready()
                dns.set([*old[index + 1 :], *new])
                manager.until(lambda: manager.states() == ["ready", "ready"])
            # Both successors answer.
            manager.until(lambda: all(one["requests"] for one in manager.status()["servers"]))
        assert sorted(addresses(manager)) == sorted(f"{host.address}:50051" for host in new)
        assert load.errors == []
        assert checks.wrong == 0 < checks.done
        totals = manager.status()["totals"]
        assert totals["errors"] == 0
        assert totals["requests"] >= load.done
