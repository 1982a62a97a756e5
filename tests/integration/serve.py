"""A running `tritonembed-manager serve`, its processes, and clients that keep it busy."""

import asyncio
import csv
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.processes import command, model_stubs

from tritonembed import AsyncEmbeddingClient, EmbeddingClient, TritonEmbedError, UnavailableError
from tritonembed_engine.stub.child_python import module_command
from tritonembed_manager.server.process import Process, family, process_table
from tritonembed_perf.failures import UsageError
from tritonembed_perf.perf_analyzer import find_program
from tritonembed_perf.server import RunningServer, free_ports
from tritonembed_perf.server import running_server as perf_server

MANAGER = tuple(module_command("tritonembed_manager"))
START_LIMIT_S = 120
SHARED_MEMORY = Path("/dev/shm")
ON_ITS_WAY_S = 2.0
"""Seconds that a request may take to reach a manager on the same busy cores."""


class Serve:
    """The manager's process and its state."""

    def __init__(
        self, *arguments: object, program: Sequence[str] = MANAGER, folder: Path | None = None, **environment: str
    ) -> None:
        self.port, self.http_port, start_port = free_ports(3)
        launches = any(str(argument) in ("--model", "--models") for argument in arguments)
        self.target = f"127.0.0.1:{self.port}"
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the manager
        options = [f"--port={self.port}", f"--http-port={self.http_port}", f"--startup-timeout={START_LIMIT_S}"]
        if launches:
            options.append(f"--start-port={start_port}")
        self.process = subprocess.Popen(
            [*program, "serve", "--host=127.0.0.1", *options, *map(str, arguments)],
            cwd=folder,
            # On a machine with few cores, the servers must not compete for all of them.
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            text=True,
        )
        self._seen: list[Process] = []

    def log(self) -> str:
        """Everything that the manager wrote to stdout and stderr."""
        self._log.seek(0)
        return self._log.read()

    def until(self, condition: Callable[[], Any], limit: float = START_LIMIT_S) -> Any:
        """Wait until the condition is true; return its value. limit: in seconds."""
        end = time.monotonic() + limit
        while not (value := condition()):
            assert time.monotonic() < end, f"it took too long; the log:\n{self.log()}"
            time.sleep(0.02)
        return value

    def wait_ready(self) -> None:
        """Wait until the manager prints READY."""
        self.until(lambda: self.process.poll() is not None or "READY grpc " in self.log())
        assert self.process.poll() is None, self.log()

    def status(self) -> dict[str, Any]:
        """The answer of /status; {} if there is none."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/status", timeout=5) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except OSError:
            return {}

    def server(self, id: str) -> dict[str, Any]:
        """A server's part of /status."""
        return next(server for server in self.status()["servers"] if server["id"] == id)

    def is_full(self) -> bool:
        """Whether at least 64 requests are in flight."""
        return bool(self.status().get("totals", {}).get("in_flight", 0) >= 64)

    def states(self) -> list[str]:
        """The servers' states, in order."""
        return [server["state"] for server in self.status().get("servers", ())]

    def serves(self) -> bool:
        """Whether the manager answers a request."""
        try:
            with EmbeddingClient(self.target) as client:
                return len(client.embed(["a sentence"], timeout=5).embeddings) == 1
        except TritonEmbedError:
            return False

    def family(self) -> list[Process]:
        """The manager's living processes, including those that have lost their parent since the last call."""
        self._seen = family(self.process.pid, process_table(), self._seen)
        return self._seen

    def tritonservers(self) -> dict[str, int]:
        """Pids of the tritonservers by the servers' ids."""
        found = {}
        for process in self.family():
            if process.name == "tritonserver":
                repository = next(word for word in command(process.pid) if word.startswith("--model-repository="))
                found[Path(repository.partition("=")[2]).parent.name] = process.pid
        return found

    def stub(self, id: str, model: str) -> int:
        """The pid of the first of a server's python stubs for a model."""
        leader = self.tritonservers()[id]
        pid, *_ = model_stubs((process for process in self.family() if process.session == leader), f"{model}/")
        return pid

    def check_a_death(self, server: str, pid: Callable[[], int]) -> None:
        """Kill a process of a server under load. The server is restarted, and no client gets an error."""
        before = self.server(server)["restarts"]
        with Load(self.target) as load:
            load.answers(96)
            self.until(self.is_full)
            os.kill(pid(), signal.SIGKILL)
            self.until(lambda: self.server(server)["restarts"] == before + 1)
            load.answers(300)
        assert load.errors == []
        # The load has ended, because a restart needs the two cores of a small machine.
        self.until(lambda: self.states() == ["ready", "ready"])

    def workers(self) -> list[int]:
        """Pids of the workers."""
        module = "tritonembed_manager.router.worker"
        return [process.pid for process in self.family() if module in command(process.pid)]

    def regions(self) -> list[Path]:
        """The manager's regions of shared memory. Their names hold its pid."""
        mine = f"tritonembed_{self.process.pid}_"
        return [path for path in SHARED_MEMORY.iterdir() if path.name.startswith(mine)]

    def end(self) -> None:
        """End the manager, kill the processes that are left, and remove its regions."""
        self.family()
        end_soon(self.process, self.log)
        for process in self.family():
            os.kill(process.pid, signal.SIGKILL)
        for region in self.regions():
            region.unlink(missing_ok=True)
        self._log.close()


def end_soon(process: "subprocess.Popen[str]", log: Callable[[], str]) -> None:
    """End a manager without waiting until its tritonservers have ended in order, which takes seconds."""
    end = time.monotonic() + 60
    process.send_signal(signal.SIGTERM)
    while process.poll() is None and time.monotonic() < end:
        if "finishing requests in flight" in log():
            # A second signal kills.
            process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    process.kill()
    process.wait()


@contextmanager
def running_server(model: str, arguments: Sequence[str]) -> Iterator[RunningServer]:
    """A Triton server of a model that is ready. Its end is quick."""
    with perf_server(model, arguments) as running:
        try:
            yield running
        finally:
            end_soon(running.process, running.read_log)


@contextmanager
def serving(
    *arguments: object, program: Sequence[str] = MANAGER, folder: Path | None = None, **environment: str
) -> Iterator[Serve]:
    """A manager that is ready, and is ended in any case. folder: its working directory."""
    manager = Serve(*arguments, program=program, folder=folder, **environment)
    try:
        manager.wait_ready()
        yield manager
    finally:
        manager.end()


class Load:
    """Clients that send one request after the other until the end of the `with`. rest_s: between two requests.

    megabytes: the size of each request; by default a few sentences.
    """

    def __init__(
        self, target: str, clients: int = 96, *, rest_s: float = 0.0, connections: int = 4, megabytes: int = 0
    ) -> None:
        self._target = target
        self._connections = connections
        self._clients = clients
        self._rest_s = rest_s
        self._more = " " * (megabytes << 20)
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
        """Wait for `count` more answers."""
        until, end = self.done + count, time.monotonic() + limit
        while self.done < until:
            assert time.monotonic() < end, f"{until - self.done} answers are missing; {self.errors[:3]}"
            time.sleep(0.01)

    def manager_ends(self) -> None:
        """From now on, new requests may fail, but only with UNAVAILABLE. Earlier requests have to be answered."""
        self._told_at = time.monotonic()

    def _may_be_refused(self, began: float) -> bool:
        return began >= self._told_at - ON_ITS_WAY_S

    async def _run(self) -> None:
        async with AsyncExitStack() as stack:
            # Several connections, as if from several programs.
            clients = [AsyncEmbeddingClient(self._target) for _ in range(self._connections)]
            shared = [await stack.enter_async_context(client) for client in clients]
            await asyncio.gather(*(self._send(shared[index % len(shared)], index) for index in range(self._clients)))

    async def _send(self, client: AsyncEmbeddingClient, index: int) -> None:
        texts = [f"client {index} sends sentence {number} of a request" for number in range(4 + index % 8)]
        texts[0] += self._more
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


def perf_analyzer(manager: Serve, folder: Path, way: Sequence[str]) -> dict[str, str]:
    """What perf_analyzer measures. folder: for its files. way: its options of the protocol."""
    try:
        program = find_program(None)
    except UsageError as error:
        pytest.skip(str(error))
    texts, export = folder / "input.json", folder / "export.csv"
    texts.write_text(json.dumps({"data": [{"text": [text]} for text in ("a text", "another text, a little longer")]}))
    address = manager.target if "grpc" in way else f"127.0.0.1:{manager.http_port}"
    command = [program.path, "-m", "embedding", *way, "-u", address, "-b", "2", "--input-data", texts]
    # Three windows of any spread are enough: the tests check that there are figures, not the figures.
    command += ["--concurrency-range", "4", "-p", "500", "-s", "999", "-r", "10", "-f", export, "--verbose-csv"]
    environment = os.environ | program.environment
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    [row] = csv.DictReader(export.read_text().splitlines())
    return row
