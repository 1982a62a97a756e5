"""The pool of worker processes, which share the manager's ports: the parent starts, restarts and drains them."""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tritonembed_manager.router.control.restarts import RestartLimits, Restarts
from tritonembed_manager.router.control.worker_process import Command, Worker, how_it_ended, worker_command
from tritonembed_manager.router.data.load_table import LoadTable
from tritonembed_manager.router.data.tenants import Tenant
from tritonembed_manager.router.link import WorkerConfig
from tritonembed_manager.router.log import log, warn
from tritonembed_manager.router.tls import Pems
from tritonembed_manager.server.client_tls import ClientTls

LIMITS = RestartLimits(limit=1_000_000, window=60.0, first_delay=0.5, longest_delay=5.0)
"""Workers are restarted for ever, because nothing is served without them."""
_HOPELESS_STARTS = 3
"""If this many workers ended before any worker ever listened, no worker will."""
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
        self._workers: dict[int, Worker] = {}
        self._draining = self._lame_ducks = False
        self._ever_ready = False
        self.restarts = 0
        self.cut = 0
        """Requests that workers cut when the time to drain was over."""
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
        """Let these workers, and those that are started later, use another certificate."""
        self._config = replace(self._config, tls=pems)
        self.send({"type": "tls", "pems": asdict(pems)})

    def set_tenants(self, tenants: Sequence[Tenant]) -> None:
        """Let these workers, and those that are started later, serve other tenants."""
        self._config = replace(self._config, tenants=tuple(tenants))
        self.send({"type": "tenants", "tenants": [tenant.to_json() for tenant in tenants]})

    def set_server_tls(self, tls: ClientTls) -> None:
        """Let these workers, and those that are started later, reach grpcs:// servers in another way."""
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
        worker = self._workers[index] = Worker(self._command, self._table, self._environment, inherited)
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

    async def _end_if_it_hangs(self, index: int, worker: Worker) -> None:
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
            # A worker may also drain alone, on SIGTERM. It is replaced, and its cuts don't count here.
            self.cut += line["requests"] if self._draining else 0
        elif line["type"] != "alive":
            self._receive(index, line)


def mark_dead(pid: int, folder: Path) -> None:
    """Drop a dead worker's gauges from the Prometheus metrics, and keep its counters.

    folder: has the files in which all workers keep their metrics.
    """
    try:
        from prometheus_client import multiprocess
    except ImportError:
        return
    multiprocess.mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
