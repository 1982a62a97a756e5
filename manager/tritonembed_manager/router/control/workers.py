"""The worker processes, which share the manager's ports: the parent starts, watches, restarts and drains them.

A worker sends a line twice per second. If it is silent, the parent checks the state of the process.
"""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tritonembed_engine.stub.child_python import module_command
from tritonembed_manager.router.control.restarts import RestartLimits, Restarts
from tritonembed_manager.router.data.load_table import LoadTable
from tritonembed_manager.router.data.tenants import Tenant
from tritonembed_manager.router.link import LINE_BYTES, WorkerConfig, send_line
from tritonembed_manager.router.log import log, warn
from tritonembed_manager.router.tls import Pems
from tritonembed_manager.server.client_tls import ClientTls
from tritonembed_manager.server.process import Process, read_process

TICK_S = 0.25
"""Seconds between two checks by the parent."""
_LOOK_S = 0.75
_STOPPED_S = 0.5
_IDLE_S = 2.0
_SILENT_S = 30.0
_START_S = 300.0
_IDLE_STATE = "S"


class Pulse:
    """Finds out whether a worker hangs.

    Silence is counted in the parent's own ticks. So time in which the parent does not run (it is stopped, or the
    machine sleeps or is overloaded) does not count as silence of the worker.

    A worker that computes, or waits for a CPU or a disk, is busy, and may be silent for 30 s. A starting worker is
    silent while it imports, perhaps from a slow disk. So until `ready` it hangs only if the process is stopped, or
    after five minutes.
    """

    def __init__(self, pid: int, read: Callable[[int], Process | None] = read_process) -> None:
        self._pid = pid
        self._read = read
        self._silent = 0.0
        self._idle = 0.0
        self._stopped = 0.0
        self._cpu_ticks = -1
        self.ready = False
        self.closed = False
        """Whether the worker has closed its end of the socket and is ending."""

    def beat(self) -> None:
        """A line arrived."""
        self._silent = 0.0

    def tick(self, passed: float) -> str | None:
        """The reason to kill the worker, or None. passed: seconds since the last tick."""
        counted = min(passed, 2 * TICK_S)
        self._silent += counted
        if self._silent < _LOOK_S:
            self._idle = self._stopped = 0.0
            return None
        process = self._read(self._pid)
        if process is None:
            return None
        if process.stopped and self._stopped >= _STOPPED_S:
            return "it is stopped (SIGSTOP)"
        self._stopped = self._stopped + counted if process.stopped else 0.0
        is_idle = process.state == _IDLE_STATE and process.cpu_ticks == self._cpu_ticks
        self._idle = self._idle + counted if is_idle and self.ready and not self.closed else 0.0
        self._cpu_ticks = process.cpu_ticks
        most = _SILENT_S if self.ready else _START_S
        if self._idle >= _IDLE_S - _LOOK_S or self._silent >= most:
            return f"it has been silent for {self._silent:.1f} s"
        return None


MODULE = "tritonembed_manager.router.worker"
_BEHIND_BYTES = 8 * 1024 * 1024
"""A worker with this many unread bytes gets no lines with `may_drop`."""

Command = Callable[[int, int], Sequence[str]]
"""Makes the worker's command line from the descriptors of its end of the socket and of the load table."""


def worker_command(control_fd: int, table_fd: int) -> Sequence[str]:
    """The command line of a worker, with this Python."""
    return module_command(MODULE, "--control-fd", str(control_fd), "--table-fd", str(table_fd))


class WorkerProcess:
    """A worker process and the parent's end of its socket. Needs a running event loop.

    inherited: further descriptors for the worker.
    """

    def __init__(
        self, command: Command, table: LoadTable, environment: Mapping[str, str], inherited: Sequence[int] = ()
    ) -> None:
        ours, theirs = socket.socketpair()
        self._ours = ours
        with theirs:
            # In its own session, so that Ctrl-C at the terminal reaches only the parent, which then drains.
            self.process = subprocess.Popen(
                command(theirs.fileno(), table.fd),
                pass_fds=[theirs.fileno(), table.fd, *inherited],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.pid = self.process.pid
        self.pulse = Pulse(self.pid)
        self._writer: asyncio.StreamWriter | None = None

    async def listen(
        self, first: Callable[[], Sequence[dict[str, Any]]], receive: Callable[[dict[str, Any]], None]
    ) -> None:
        """Send the first lines, then receive lines until the worker closes its end."""
        reader, writer = await asyncio.open_connection(sock=self._ours, limit=LINE_BYTES)
        self._writer = writer
        try:
            # The lines are made only now, because earlier changes could not be sent.
            for line in first():
                self.send(line)
            while line_bytes := await reader.readline():
                self.pulse.beat()
                receive(json.loads(line_bytes))
        except (ConnectionError, ValueError):
            return
        finally:
            self.pulse.closed = True
            self._writer = None
            writer.close()

    @property
    def ready(self) -> bool:
        """Whether the worker listens on its ports."""
        return self.pulse.ready

    def became_ready(self) -> None:
        """The worker reported that it listens on its ports."""
        self.pulse.ready = True

    def send(self, line: dict[str, Any], *, may_drop: bool = False) -> None:
        """Send a line without waiting. may_drop: drop it if the worker is far behind with reading."""
        if self._writer is not None:
            send_line(self._writer, line, most_unread=_BEHIND_BYTES if may_drop else None)

    async def hangs(self) -> str:
        """Wait until the worker hangs. Returns the reason to kill it."""
        before = time.monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            if (why := self.pulse.tick(now - before)) is not None:
                return why
            before = now

    async def ended(self) -> int:
        """Wait until the worker has ended. Returns its exit status."""
        return await process_ended(self.process)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()


async def process_ended(process: "subprocess.Popen[bytes]") -> int:
    """Wait until a child process has ended. Returns its exit status."""
    loop = asyncio.get_running_loop()
    gone: asyncio.Future[None] = loop.create_future()
    pidfd = os.pidfd_open(process.pid)
    loop.add_reader(pidfd, _resolve, gone)
    try:
        await gone
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
    return process.wait()


def how_it_ended(status: int) -> str:
    """An exit status as text."""
    return f"signal {-status}" if status < 0 else f"exit code {status}"


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


LIMITS = RestartLimits(limit=1_000_000, window=60.0, first_delay=0.5, longest_delay=5.0)
"""Workers are restarted without a limit, because they are needed to serve at all."""
_HOPELESS_STARTS = 3
"""If this many workers ended before any worker listened, the start has failed."""
_DRAIN = {"type": "drain"}
_LAME_DUCK = {"type": "lame_duck"}


class WorkerPool:
    """All workers.

    first: makes the lines that a worker gets after its config. receive: called with a worker's index and its line.
    gone: called with index and pid of a worker that ended.
    """

    def __init__(
        self,
        config: WorkerConfig,
        table: LoadTable,
        *,
        first: Callable[[], list[dict[str, Any]]],
        receive: Callable[[int, dict[str, Any]], None],
        gone: Callable[[int, int], None] | None = None,
        command: Command = worker_command,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._config = config
        self._table = table
        self._first = first
        self._receive = receive
        self._gone = gone
        self._command = command
        self._environment = os.environ if environment is None else environment
        self._workers: dict[int, WorkerProcess] = {}
        self._draining = self._lame_ducks = False
        self._ever_ready = False
        self.restarts = 0
        self.cut = 0
        """Requests that workers cut at the end of the drain."""
        self.died: str | None = None
        """Which worker failed after `drain`, and how."""
        self.outage: str | None = None
        """The reason why workers can't serve at all."""
        self.news = asyncio.Event()
        """Set whenever a worker became ready or failed to start."""

    async def run(self) -> None:
        """Keep the workers running. Returns when all have ended after `drain`. Cancelling it kills them."""
        await asyncio.gather(*(self._keep(index) for index in range(self._config.workers)))

    @property
    def ready(self) -> bool:
        """Whether every worker listens."""
        return len(self._workers) == self._config.workers and all(worker.ready for worker in self._workers.values())

    def figures(self) -> dict[str, int]:
        """The workers' figures for the status."""
        ready = sum(worker.ready for worker in self._workers.values())
        return {"count": self._config.workers, "ready": ready, "restarts": self.restarts}

    def pids(self) -> list[int]:
        return [worker.pid for worker in self._workers.values()]

    def send(self, line: dict[str, Any], *, may_drop: bool = False) -> None:
        """Send a line to all workers. may_drop: as for a worker's `send`."""
        for worker in self._workers.values():
            worker.send(line, may_drop=may_drop)

    def set_tls(self, pems: Pems) -> None:
        """Let current and later workers use another certificate."""
        self._config = replace(self._config, tls=pems)
        self.send({"type": "tls", "pems": asdict(pems)})

    def set_tenants(self, tenants: Sequence[Tenant]) -> None:
        """Let current and later workers serve other tenants."""
        self._config = replace(self._config, tenants=tuple(tenants))
        self.send({"type": "tenants", "tenants": [tenant.to_json() for tenant in tenants]})

    def set_server_tls(self, tls: ClientTls) -> None:
        """Let current and later workers use other certificates for grpcs:// servers."""
        self._config = replace(self._config, server_tls=tls)
        self.send({"type": "server_tls", "pems": asdict(tls)})

    def be_lame_ducks(self) -> None:
        """Make the workers' health negative. They still serve requests."""
        self._lame_ducks = True
        self.send(_LAME_DUCK)

    def drain(self) -> None:
        """Let workers finish the requests in flight and end. None is restarted."""
        self._draining = True
        self.send(_DRAIN)

    def kill(self) -> None:
        """Kill all workers. None is restarted."""
        self._draining = True
        for worker in self._workers.values():
            worker.kill()

    async def _keep(self, index: int) -> None:
        restarts = Restarts(LIMITS)
        while not self._draining:
            status = await self._live(index)
            if self._draining:
                return
            delay = restarts.died(time.monotonic()) or 0.0
            self.restarts += 1
            if not self._ever_ready and self.restarts >= _HOPELESS_STARTS:
                self.outage = self.outage or f"the manager's workers do not start ({how_it_ended(status)})"
                self.news.set()
                return
            warn("worker_died", f"worker {index} ended ({how_it_ended(status)}); another one starts", worker=index)
            await asyncio.sleep(delay)

    async def _live(self, index: int) -> int:
        inherited = [] if self._config.quota_fd is None else [self._config.quota_fd]
        worker = self._workers[index] = WorkerProcess(self._command, self._table, self._environment, inherited)
        listening = asyncio.create_task(
            worker.listen(lambda: self._first_lines(index), lambda line: self._handle(index, line))
        )
        watching = asyncio.create_task(self._end_if_it_hangs(index, worker))
        try:
            status = await worker.ended()
            # Its last lines are still in the socket.
            await listening
            if self._draining and worker.ready and status:
                self.died = f"worker {index} ended ({how_it_ended(status)})"
            return status
        finally:
            watching.cancel()
            worker.kill()
            worker.process.wait()
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listening
            self._workers.pop(index, None)
            self._table.zero(index)
            if self._gone is not None:
                self._gone(index, worker.pid)

    async def _end_if_it_hangs(self, index: int, worker: WorkerProcess) -> None:
        """Kill a worker that hangs, because it keeps its share of new connections until it is gone."""
        why = await worker.hangs()
        warn("worker_hangs", f"worker {index} does not run: {why}", worker=index)
        worker.kill()

    def _first_lines(self, index: int) -> list[dict[str, Any]]:
        config = {"type": "config", **replace(self._config, index=index).to_json()}
        ending = [*([_LAME_DUCK] if self._lame_ducks else []), *([_DRAIN] if self._draining else [])]
        return [config, *self._first(), *ending]

    def _handle(self, index: int, line: dict[str, Any]) -> None:
        if line["type"] == "ready":
            self._workers[index].became_ready()
            self._ever_ready = True
            log("worker_ready", f"worker {index} listens", worker=index)
            self.news.set()
        elif line["type"] == "failed":
            self.outage = str(line["why"])
            self.news.set()
        elif line["type"] == "cut":
            # A worker may also drain alone, on SIGTERM. It is then replaced, and its cuts don't count here.
            self.cut += line["requests"] if self._draining else 0
        elif line["type"] != "alive":
            self._receive(index, line)


def mark_dead(pid: int, folder: Path) -> None:
    """Drop a dead worker's gauges from the Prometheus metrics, and keep its counters.

    folder: of the files in which all workers keep their metrics.
    """
    try:
        from prometheus_client import multiprocess
    except ImportError:
        return
    multiprocess.mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
