"""The parent of everything: servers, lists, checks, workers; from the start to the end of the drain."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from tritonembed_manager.errors import ManagerError
from tritonembed_manager.serve.arctic_aborts import LINES
from tritonembed_manager.serve.control.drain_time import SERVERS_END_S, DrainTime
from tritonembed_manager.serve.control.health import event_or_time
from tritonembed_manager.serve.control.launching import Prepared
from tritonembed_manager.serve.control.lists import ServerLists
from tritonembed_manager.serve.control.logs import log
from tritonembed_manager.serve.control.prometheus import mark_dead
from tritonembed_manager.serve.control.roster import Roster
from tritonembed_manager.serve.control.servers import Servers
from tritonembed_manager.serve.control.settings import ServeSettings
from tritonembed_manager.serve.control.snapshot import Snapshots
from tritonembed_manager.serve.control.start import StartJudge
from tritonembed_manager.serve.control.traffic import Traffic
from tritonembed_manager.serve.control.worker_process import Command, worker_command
from tritonembed_manager.serve.control.workers import WorkerPool
from tritonembed_manager.serve.load_table import LoadTable
from tritonembed_manager.serve.worker_config import WorkerConfig
from tritonembed_manager.signals import STOP_SIGNALS

STATUS_EVERY_S = 1.0
_ECHO_S = 0.25


class Supervisor:
    """Made and run inside an event loop, in the main thread. servers: those to launch."""

    def __init__(
        self,
        settings: ServeSettings,
        servers: Sequence[Prepared],
        metrics_folder: Path,
        *,
        worker_command: Command = worker_command,
    ) -> None:
        self._settings = settings
        self._prepared = servers
        self._began = time.monotonic()
        self._table = LoadTable.create(settings.workers)
        self._traffic = Traffic(time.monotonic)
        self._roster = Roster(
            self._table.slots, time.monotonic, self._changed, busy=lambda slot: self._table.in_flight(slot) > 0
        )
        self._drain_time = DrainTime.of(settings.drain_timeout, launches=bool(servers))
        self._servers = Servers(
            self._roster,
            self._traffic,
            self._table,
            settings.health,
            leave_timeout=settings.drain_timeout,
            cleared=lambda id: self._workers.tell({"type": "cleared", "server": id}),
        )
        self._snapshots = Snapshots(
            self._roster,
            self._traffic,
            self._table,
            model=settings.model,
            policy=settings.policy,
            warnings=settings.warnings,
        )
        environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(metrics_folder)}
        self._workers = WorkerPool(
            self._worker_config(),
            self._table,
            first=lambda: [self._servers_line(), self._status_line()],
            hear=self._heard,
            gone=lambda _, pid: mark_dead(pid, metrics_folder),
            command=worker_command,
            environment=environment,
        )
        self._draining = False
        self._dirty = False
        self._news = self._workers.news
        self._signals: list[signal.Signals] = []
        self._told = 0.0
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Serve until a signal ends it. Raises ManagerError when it can't start, had to be forced, or cut requests."""
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            # What is ignored stays ignored: nohup, and a shell's background jobs.
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._told_to_stop, number)
        try:
            if await self._start():
                await self._wait(lambda: bool(self._signals))
                await self._drain()
        finally:
            self._workers.kill()
            await self._servers.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._table.close()

    async def _start(self) -> bool:
        """Start everything; whether it came so far that it is to be drained in the end."""
        self._background(self._workers.run())
        for server in self._prepared:
            self._servers.launch(server.id, server.spec, server.address, server.replicas)
        attach = self._settings.attach
        if attach is not None:
            lists = ServerLists(attach.servers, attach.file, attach.dns, self._servers.follow)
            self._servers.follow(await lists.first(), first=True)
            self._background(lists.run())
        self._background(self._tell_status())
        judge = StartJudge(self._roster, self._servers.launched, self._workers)
        await self._wait(lambda: bool(self._signals) or judge.started(), self._settings.startup_timeout)
        if self._signals:
            log("stopped", f"{self._signals[-1].name}: start abandoned")
            return False
        if not judge.started():
            limit = f"{self._settings.startup_timeout:g} s (--startup-timeout)"
            raise ManagerError(f"not ready after {limit}: {judge.why()}")
        at, settings = self._settings.host, self._settings
        addresses = f"grpc {at}:{settings.port} http {at}:{settings.http_port} metrics {at}:{settings.http_port}"
        print(f"READY {addresses} in {time.monotonic() - self._began:.1f} s", flush=True)
        return True

    async def _drain(self) -> None:
        self._draining = True
        parts, until = self._drain_time, time.monotonic() + self._settings.drain_timeout
        log("draining", f"{self._signals[-1].name}: finishing what is in flight (once more to kill)")
        self._servers.retire()
        self._workers.tell(self._status_line())
        self._workers.drain()
        workers = self._tasks[0]
        await self._wait(lambda: workers.done() or len(self._signals) > 1, parts.work + parts.closing)
        self._stop_if_forced()
        unfinished = self._unfinished(workers_ended=workers.done())
        self._workers.kill()
        # Nothing is in flight there: one that takes long to end is not waited for.
        left = until - time.monotonic() - parts.killing
        stopping = self._background(self._servers.stop_launched(min(left, SERVERS_END_S)))
        await self._wait(lambda: stopping.done() or len(self._signals) > 1)
        self._stop_if_forced()
        if unfinished:
            raise ManagerError(unfinished)
        log("stopped", "stopped; nothing was in flight any more")

    def _unfinished(self, *, workers_ended: bool) -> str | None:
        """What was lost, once the workers have had their time."""
        pool, late = self._workers, f"did not finish within {self._settings.drain_timeout:g} s (--drain-timeout)"
        if pool.cut:
            return f"{pool.cut} request{'s' if pool.cut > 1 else ''} {late}: cut"
        if not workers_ended:
            return f"what was in flight {late}: killed"
        return pool.died and f"{pool.died} before what it had in flight was finished"

    def _stop_if_forced(self) -> None:
        if len(self._signals) > 1:
            raise ManagerError(f"{self._signals[-1].name} while stopping: killed")

    async def _wait(self, condition: Callable[[], bool], timeout: float | None = None) -> None:
        """Until the condition holds, which is looked at whenever there is news; raises what a task failed with."""
        until = None if timeout is None else time.monotonic() + timeout
        while not condition():
            self._news.clear()
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                return
            await event_or_time(self._news, left)
            for task in self._tasks:
                if task.done() and not task.cancelled():
                    task.result()

    def _background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        task.add_done_callback(lambda _: self._news.set())
        self._tasks.append(task)
        return task

    def _told_to_stop(self, number: int) -> None:
        now = time.monotonic()
        # `timeout` and some supervisors send the same signal to the process and to its group: that is one.
        if not self._signals or self._signals[-1] != number or now - self._told > _ECHO_S:
            self._signals.append(signal.Signals(number))
        self._told = now
        self._news.set()

    def _changed(self) -> None:
        if not self._dirty:
            self._dirty = True
            asyncio.get_running_loop().call_soon(self._broadcast)

    def _broadcast(self) -> None:
        self._dirty = False
        self._servers.changed()
        self._workers.tell(self._servers_line())
        # Not only with its next turn: who reads READY and asks for the status is to see what is ready.
        self._workers.tell(self._status_line(), may_drop=True)
        self._news.set()

    def _heard(self, worker: int, line: Mapping[str, Any]) -> None:  # noqa: ARG002
        if line["type"] == "suspect":
            self._servers.suspect(str(line["server"]), str(line["why"]))
        elif line["type"] == "stats":
            self._traffic.add(line)
        elif line["type"] in LINES:
            self._workers.tell(dict(line))

    async def _tell_status(self) -> None:
        while True:
            await asyncio.sleep(STATUS_EVERY_S)
            self._workers.tell(self._status_line(), may_drop=True)

    def _servers_line(self) -> dict[str, Any]:
        return {"type": "servers", "servers": [view.to_json() for view in self._roster.views()]}

    def _status_line(self) -> dict[str, Any]:
        return self._snapshots.take(draining=self._draining, workers=self._workers.figures())

    def _worker_config(self) -> WorkerConfig:
        settings = self._settings
        return WorkerConfig(
            index=0,
            workers=settings.workers,
            slots=self._table.slots,
            host=settings.host,
            port=settings.port,
            http_port=settings.http_port,
            model=settings.model,
            policy=settings.policy,
            forward_timeout=settings.forward_timeout,
            drain_timeout=self._drain_time.work,
            closing_timeout=self._drain_time.closing,
            max_in_flight=settings.max_in_flight,
            max_in_flight_per_server=settings.max_in_flight_per_server,
            log_format=settings.log_format,
        )
