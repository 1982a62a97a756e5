"""What a worker does: it serves requests, follows its parent, counts, and drains."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from tritonembed.policies import make_policy
from tritonembed_manager.serve.admission import Admission
from tritonembed_manager.serve.arctic_aborts import LINES
from tritonembed_manager.serve.dispatcher import TritonDispatcher
from tritonembed_manager.serve.load_table import LoadTable
from tritonembed_manager.serve.metrics import WorkerMetrics
from tritonembed_manager.serve.model import ServerView
from tritonembed_manager.serve.pool import ServerPool
from tritonembed_manager.serve.worker_config import WorkerConfig
from tritonembed_manager.serve.worker_endpoints import Endpoints, PortError
from tritonembed_manager.serve.worker_link import Link
from tritonembed_manager.serve.worker_stats import stats_line

EXIT_DRAINED, EXIT_ALONE, EXIT_CANNOT, EXIT_CUT = 0, 1, 2, 3
"""The last: not everything had finished when the time to drain was over, and what had not was cut."""
_STATS_EVERY_S = 1.0
_MAX_BYTES = 1 << 30
"""Of requests that are waiting or in flight, in all workers."""


class Worker:
    """One worker on the running event loop: from its config until it has drained or its parent has gone."""

    def __init__(
        self,
        config: WorkerConfig,
        table: LoadTable,
        link: Link,
        metrics: WorkerMetrics | None = None,
    ) -> None:
        self._config = config
        self._link = link
        self._row = table.row(config.index)
        self._pool = ServerPool(
            self._row, config.max_in_flight_per_server, lambda server, why: link.say("suspect", server=server, why=why)
        )
        self._admission = Admission(self._row, config.max_in_flight, _MAX_BYTES)
        self.dispatcher = TritonDispatcher(
            self._pool, make_policy(config.policy), self._admission, config.forward_timeout
        )
        self._metrics = metrics or WorkerMetrics()
        self._status: dict[str, Any] = {}
        self._over: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._tasks: list[asyncio.Future[None]] = []
        self._endpoints = Endpoints(
            config,
            self.dispatcher,
            status=lambda: self._status,
            say=link.send,
            is_serving=lambda: not self._admission.draining,
        )
        self._pool.changed = self._endpoints.refresh

    async def run(self) -> int:
        """Serve; the exit code."""
        try:
            # First, so that its first answers know the servers.
            self._in_background(self._hear())
            await self._endpoints.start()
            self._link.say("ready")
            self._in_background(self._count())
            return await self._over
        except PortError as error:
            self._link.say("failed", why=str(error))
            return EXIT_CANNOT
        finally:
            for task in self._tasks:
                task.cancel()
            await self._close()

    def drain(self) -> None:
        """Accept nothing new; the worker ends when what is in flight has finished."""
        if not self._admission.draining:
            self._admission.drain()
            self._endpoints.refresh()
            self._in_background(self._drain())

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        task.add_done_callback(self._check)
        self._tasks.append(task)

    def _check(self, task: asyncio.Future[None]) -> None:
        """A worker that no longer hears, or counts, is to be seen: it ends, and its parent starts another one."""
        if not task.cancelled() and (error := task.exception()) is not None and not self._over.done():
            self._over.set_exception(error)

    def _end(self, code: int) -> None:
        if not self._over.done():
            self._over.set_result(code)

    async def _hear(self) -> None:
        while (line := await self._link.hear()) is not None:
            self._obey(line)
        self._end(EXIT_ALONE)

    def _obey(self, line: dict[str, Any]) -> None:
        kind = line["type"]
        if kind == "servers":
            self._pool.update([ServerView.from_json(server) for server in line["servers"]])
        elif kind == "status":
            self._status = line
        elif kind == "cleared":
            self._pool.cleared(line["server"])
        elif kind == "drain":
            self.drain()
        elif kind in LINES:
            self._endpoints.aborts.hear(line)

    async def _drain(self) -> None:
        try:
            await asyncio.wait_for(self._admission.drained(), self._config.drain_timeout)
        except asyncio.TimeoutError:
            self._link.say("cut", requests=self._row.admitted())
            self.dispatcher.cut()
            await self._admission.drained()
            self._end(EXIT_CUT)
        self._end(EXIT_DRAINED)

    async def _count(self) -> None:
        while True:
            await asyncio.sleep(_STATS_EVERY_S)
            self._collect()

    def _collect(self) -> None:
        tallies = self.dispatcher.meter.collect()
        servers = self._pool.servers()
        in_flight, waiting = self._row.admitted(), len(self._pool.waiters)
        self._metrics.take(tallies, in_flight=in_flight, waiting=waiting, servers=servers)
        self._link.say("stats", may_drop=True, **stats_line(tallies, in_flight, waiting, servers))

    async def _close(self) -> None:
        await self._endpoints.stop(self._config.closing_timeout / 3)
        await self._pool.close()
        self._collect()
        await self._link.close()
