"""A running `tritonembed-manager serve`, what belongs to it, and clients that keep it busy."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

from tritonembed import AsyncEmbeddingClient, EmbeddingClient, TritonEmbedError, UnavailableError
from tritonembed_manager.processes import Process, family, process_table
from tritonembed_manager.tritonserver import STUB
from tritonembed_perf.server import free_ports

START_LIMIT_S = 120
SHARED_MEMORY = Path("/dev/shm")
ON_ITS_WAY_S = 0.25
"""From a request's beginning here to its arrival at a manager on the same busy cores."""


class Serve:
    """The manager's process and how it stands."""

    def __init__(self, *arguments: object, **environment: str) -> None:
        self.port, self.http_port, start_port = free_ports(3)
        launches = any(str(argument) == "--model" for argument in arguments)
        self.target = f"127.0.0.1:{self.port}"
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the manager
        options = [f"--port={self.port}", f"--http-port={self.http_port}", f"--startup-timeout={START_LIMIT_S}"]
        if launches:
            options.append(f"--start-port={start_port}")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tritonembed_manager", "serve", "--host=127.0.0.1", *options, *map(str, arguments)],
            # On a machine with few cores the servers must not fight over all of them.
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            text=True,
        )
        self._seen: list[Process] = []

    def log(self) -> str:
        """All that it wrote."""
        self._log.seek(0)
        return self._log.read()

    def until(self, condition: Callable[[], Any], limit: float = START_LIMIT_S) -> Any:
        """Wait for it; the value of the condition."""
        end = time.monotonic() + limit
        while not (value := condition()):
            assert time.monotonic() < end, f"it took too long; the log:\n{self.log()}"
            time.sleep(0.02)
        return value

    def wait_ready(self) -> None:
        """Until READY is printed."""
        self.until(lambda: self.process.poll() is not None or "READY grpc " in self.log())
        assert self.process.poll() is None, self.log()

    def status(self) -> dict[str, Any]:
        """What /status says; {} while nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/status", timeout=5) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except OSError:
            return {}

    def server(self, id: str) -> dict[str, Any]:
        """One of its servers."""
        return next(server for server in self.status()["servers"] if server["id"] == id)

    def is_full(self) -> bool:
        """Whether 64 requests and more are at its servers."""
        return bool(self.status().get("totals", {}).get("in_flight", 0) >= 64)

    def states(self) -> list[str]:
        """Of the servers, in order."""
        return [server["state"] for server in self.status().get("servers", ())]

    def serves(self) -> bool:
        """Whether it embeds."""
        try:
            with EmbeddingClient(self.target) as client:
                return len(client.embed(["a sentence"], timeout=5).embeddings) == 1
        except TritonEmbedError:
            return False

    def family(self) -> list[Process]:
        """Everything that lives of it, also what has lost its parent since the last call."""
        self._seen = family(self.process.pid, process_table(), self._seen)
        return self._seen

    def tritonservers(self) -> dict[str, int]:
        """Their pids by the servers' ids."""
        found = {}
        for process in self.family():
            if process.name == "tritonserver":
                repository = next(word for word in _command(process.pid) if word.startswith("--model-repository="))
                found[Path(repository.partition("=")[2]).parent.name] = process.pid
        return found

    def stub(self, id: str, model: str) -> int:
        """The pid of a server's python process for a model."""
        leader = self.tritonservers()[id]
        stubs = [process.pid for process in self.family() if process.name == STUB[:15] and process.session == leader]
        return next(pid for pid in stubs if any(f"/{model}/" in word for word in _command(pid)))

    def workers(self) -> list[int]:
        """Their pids."""
        return [process.pid for process in self.family() if "tritonembed_manager.serve.worker" in _command(process.pid)]

    def regions(self) -> list[Path]:
        """Its regions of shared memory, by the manager's pid, which their names hold."""
        mine = f"tritonembed_{self.process.pid}_"
        return [path for path in SHARED_MEMORY.iterdir() if path.name.startswith(mine)]

    def end(self) -> None:
        """Whatever a test left of it."""
        self.family()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for process in self.family():
            os.kill(process.pid, signal.SIGKILL)
        for region in self.regions():
            region.unlink(missing_ok=True)
        self._log.close()


@contextmanager
def serving(*arguments: object, **environment: str) -> Iterator[Serve]:
    """A manager that is ready, ended at the end whatever happens."""
    manager = Serve(*arguments, **environment)
    try:
        manager.wait_ready()
        yield manager
    finally:
        manager.end()


def _command(pid: int) -> list[str]:
    try:
        return [os.fsdecode(word) for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]
    except OSError:
        return []


class Load:
    """Clients that send one request after the other until the end of the `with`; between two they rest."""

    def __init__(self, target: str, clients: int = 96, *, rest_s: float = 0.0, connections: int = 4) -> None:
        self._target = target
        self._connections = connections
        self._clients = clients
        self._rest_s = rest_s
        self._stopping = False
        self._told_at = float("inf")
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.done = 0
        self.errors: list[str] = []

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        self._thread.join()

    def answers(self, count: int, limit: float = 60) -> None:
        """Wait for so many more."""
        until, end = self.done + count, time.monotonic() + limit
        while self.done < until:
            assert time.monotonic() < end, f"{until - self.done} answers are missing; {self.errors[:3]}"
            time.sleep(0.01)

    def manager_ends(self) -> None:
        """From now on new requests may be refused, as UNAVAILABLE and nothing else; those begun before are answered."""
        self._told_at = time.monotonic()

    def _may_be_refused(self, began: float) -> bool:
        return began >= self._told_at - ON_ITS_WAY_S

    async def _run(self) -> None:
        async with AsyncExitStack() as stack:
            # Several connections, as from several clients.
            clients = [AsyncEmbeddingClient(self._target) for _ in range(self._connections)]
            shared = [await stack.enter_async_context(client) for client in clients]
            await asyncio.gather(*(self._send(shared[index % len(shared)], index) for index in range(self._clients)))

    async def _send(self, client: AsyncEmbeddingClient, index: int) -> None:
        texts = [f"client {index} sends sentence {number} of a request" for number in range(4 + index % 8)]
        while not self._stopping:
            began = time.monotonic()
            try:
                vectors, _ = await client.embed(texts, timeout=60)
                assert len(vectors) == len(texts)
            except TritonEmbedError as error:
                if not self._may_be_refused(began) or not isinstance(error, UnavailableError):
                    self.errors.append(f"{type(error).__name__} after {time.monotonic() - began:.2f} s: {error}")
                return
            self.done += 1
            await asyncio.sleep(self._rest_s)
