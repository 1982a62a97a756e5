"""A worker: the process that serves requests. It handles its parent's lines, sends figures, and drains.

`serve` starts it with `python -m tritonembed_manager.router.worker`. link.py describes its command line and the lines
that it exchanges with its parent.
"""

import argparse
import asyncio
import gc
import signal
import sys
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc

from tritonembed_manager.router.apis.authentication import Door
from tritonembed_manager.router.data.access_log import AccessLog
from tritonembed_manager.router.data.admission import AdmissionControl
from tritonembed_manager.router.data.dispatcher import TritonDispatcher
from tritonembed_manager.router.data.failover import Quarantine
from tritonembed_manager.router.data.load_table import LoadTable
from tritonembed_manager.router.data.metrics import Meter, WorkerMetrics, stats_line
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.data.models_dispatcher import ModelsDispatcher
from tritonembed_manager.router.data.pool import Loads, UpstreamPool
from tritonembed_manager.router.data.quotas import Quotas, QuotaTable
from tritonembed_manager.router.data.tenant_dispatcher import TenantDispatcher
from tritonembed_manager.router.data.tenants import Tenant, Tenants
from tritonembed_manager.router.endpoints import Endpoints, PortError
from tritonembed_manager.router.interfaces import Admission, Dispatcher, ServerView
from tritonembed_manager.router.link import TO_ALL_WORKERS, Link, WorkerConfig
from tritonembed_manager.router.log import set_up
from tritonembed_manager.router.tls import Pems
from tritonembed_manager.server.client_tls import ClientTls
from tritonembed_protocol.policies import make_policy
from tritonembed_protocol.served import ServedModel

EXIT_DRAINED, EXIT_ALONE, EXIT_CANNOT, EXIT_CUT = 0, 1, 2, 3
"""EXIT_ALONE: the parent has died. EXIT_CANNOT: a port is taken. EXIT_CUT: requests were cut after drain_timeout."""
_STATS_EVERY_S = 1.0
_LOOK_EVERY_S = 0.5
_ALIVE_EVERY_S = 0.5
_OLD_S = 5.0
"""From this age on, a status is shown with a warning. The parent sends a status once per second."""
_MAX_BYTES = 1 << 30
"""Limit for all requests that are waiting or in flight, in all workers."""


class Worker:
    """A worker on the running event loop. It ends when it has drained, or when its parent has died."""

    def __init__(
        self,
        config: WorkerConfig,
        table: LoadTable,
        link: Link,
        metrics: WorkerMetrics | None = None,
    ) -> None:
        # The names follow the models file.
        self._config = config = replace(config, names=replace(config.names))
        self._link = link
        self._server_tls = config.server_tls
        self._row = table.row(config.index)
        self._quarantine = Quarantine()
        self._admission = AdmissionControl(self._row, config.max_in_flight, _MAX_BYTES)
        self._meter = Meter()
        self._views: list[ServerView] = []
        self._models: ModelsDispatcher | None = None
        self._only: list[TritonDispatcher] = []
        """The dispatcher of a worker with one model that does not change."""
        self.dispatcher: Dispatcher
        if config.has_several:
            self.dispatcher = self._models = ModelsDispatcher(
                config.names, self._dispatcher_of, wanted=lambda model: link.report("wanted", model=model)
            )
        else:
            self.dispatcher = only = self._dispatcher_of(config.names.served)
            self._only = [only]
        self._metrics = metrics or WorkerMetrics()
        self._is_lame_duck = False
        self._status: dict[str, Any] = {}
        self._status_came = 0.0
        self._over: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._tasks: list[asyncio.Future[None]] = []
        self._tenants = None if config.tenants is None else Tenants(config.tenants, config.names)
        endpoint, door = self._with_tenants(self._tenants)
        self._endpoints = Endpoints(
            config,
            endpoint,
            status=self._status_now,
            send=link.send,
            is_serving=lambda: not (self._is_lame_duck or self._admission.draining),
            door=door,
            exemplars=lambda: self._meter.exemplars,
        )
        tracing = self._endpoints.tracing
        self._access_log = None
        if config.access_log is not None:
            self._access_log = AccessLog(Path(config.access_log), config.names.of_ensemble, tracing.trace_id)
        if self._access_log is not None or tracing.provider is not None:
            self._meter.on_end = self._ended
        if tracing.provider is not None:
            self._meter.trace_id = tracing.trace_id
        if self._models is not None:
            self._models.changed = self._endpoints.refresh
        for one in self._only:
            one.pool.changed = self._endpoints.refresh

    def _dispatcher_of(self, served: ServedModel) -> TritonDispatcher:
        """The dispatcher of one model, or of a version of it."""
        config, link = self._config, self._link
        pool = UpstreamPool(
            self._row,
            config.max_in_flight_per_server,
            # Lines are dropped only after thousands that the parent has not read.
            lambda server, why: link.report("suspect", may_drop=True, server=server, why=why),
            ejected=lambda server, why, seconds: link.report("ejected", server=server, why=why, seconds=seconds),
            tls=self._server_tls,
        )
        return TritonDispatcher(
            pool,
            make_policy(config.policy),
            self._admission,
            config.forward_timeout,
            meter=self._meter,
            hedge_after=config.hedge_after,
            quarantine=self._quarantine,
            quarantined=lambda digest, servers: link.report("quarantined", digest=digest, servers=servers),
            served=served,
            is_only=not config.has_several,
        )

    def _ended(self, admission: Admission, code: grpc.StatusCode, seconds: float) -> None:
        """Count a request that has ended, and write it to the access log."""
        if self._access_log is not None:
            self._access_log.ended(admission, code, seconds)
        tracing = self._endpoints.tracing
        if tracing.provider is not None:
            name = self._config.names.of_ensemble(admission.model) if admission.model else ""
            tracing.note(admission, {"gen_ai.request.model": name})

    @property
    def _dispatchers(self) -> list[TritonDispatcher]:
        return self._only if self._models is None else self._models.dispatchers

    @property
    def _pools(self) -> list[UpstreamPool]:
        return [one.pool for one in self._dispatchers]

    def _with_tenants(self, tenants: Tenants | None) -> tuple[Dispatcher, Door | None]:
        """The endpoints' dispatcher, and with tenants their door."""
        if tenants is None:
            return self.dispatcher, None
        if self._config.quota_fd is None:
            raise ValueError("tenants without a quota table")
        quotas = Quotas(QuotaTable(self._config.quota_fd), self._config.index)
        config = self._config
        door = Door(
            tenants,
            quotas,
            self.dispatcher.refused,
            config.key_for_health,
            config.key_for_metrics,
            behind_envoy=config.sockets is not None,
        )
        return TenantDispatcher(self.dispatcher, quotas, self._config.names), door

    async def run(self) -> int:
        """Serve until the end. Returns the exit code."""
        beating = asyncio.ensure_future(self._beat())
        try:
            # Before the endpoints, so that the first requests find servers.
            self._in_background(self._receive())
            await self._endpoints.start()
            self._link.report("ready")
            self._in_background(self._count())
            self._in_background(self._look())
            return await self._over
        except PortError as error:
            self._link.report("failed", why=str(error))
            return EXIT_CANNOT
        finally:
            for task in self._tasks:
                task.cancel()
            await self._close()
            beating.cancel()

    def drain(self) -> None:
        """Accept nothing new. The worker ends when the requests in flight have finished."""
        if not self._admission.draining:
            self._admission.drain()
            if self._models is not None:
                self._models.drain()
            self._endpoints.refresh()
            self._in_background(self._drain())

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        task.add_done_callback(self._check)
        self._tasks.append(task)

    def _check(self, task: asyncio.Future[None]) -> None:
        """End the worker if a background task failed: it would work only in part. The parent starts another worker."""
        if not task.cancelled() and (error := task.exception()) is not None and not self._over.done():
            self._over.set_exception(error)

    def _end(self, code: int) -> None:
        if not self._over.done():
            self._over.set_result(code)

    async def _receive(self) -> None:
        while (line := await self._link.receive()) is not None:
            self._handle(line)
        self._end(EXIT_ALONE)

    def _handle(self, line: dict[str, Any]) -> None:
        kind = line["type"]
        if kind == "servers":
            self._views = [ServerView.from_json(server) for server in line["servers"]]
            self._update()
        elif kind == "names":
            self._config.names.become(ServedNames.from_json(line["names"]))
            if self._tenants is not None:
                self._tenants.names_changed()
            self._update()
        elif kind == "status":
            self._status, self._status_came = line, time.monotonic()
        elif kind == "cleared":
            for pool in self._pools:
                pool.cleared(line["server"])
        elif kind == "lame_duck":
            self._is_lame_duck = True
            self._endpoints.refresh()
        elif kind == "ejected":
            for pool in self._pools:
                pool.eject_for(line["server"], line["why"], line["seconds"])
        elif kind == "quarantine":
            for digest, until in line["until"].items():
                self._quarantine.add(digest, until)
        elif kind == "tls":
            self._endpoints.set_tls(Pems(**line["pems"]))
        elif kind == "tenants" and self._tenants is not None:
            self._tenants.update(map(Tenant.from_json, line["tenants"]))
        elif kind == "server_tls":
            self._server_tls = ClientTls(**line["pems"])
            for pool in self._pools:
                pool.set_tls(self._server_tls)
        elif kind == "drain":
            self.drain()
        elif kind in TO_ALL_WORKERS:
            self._endpoints.aborts.receive(line)

    def _update(self) -> None:
        """React to changed servers or models."""
        if self._models is not None:
            self._models.update(self._views)
        for one in self._only:
            one.pool.update([view for view in self._views if view.ensemble == one.served.name])

    def _status_now(self) -> dict[str, Any]:
        """The parent's last status, with a warning if it is old; {} before the first."""
        age = time.monotonic() - self._status_came
        if not self._status or age < _OLD_S:
            return self._status
        old = f"these figures are {age:.0f} s old: the manager's parent process does not run"
        return {**self._status, "age_s": round(age, 1), "warnings": [*self._status.get("warnings", ()), old]}

    async def _drain(self) -> None:
        try:
            await asyncio.wait_for(self._admission.drained(), self._config.drain_timeout)
        except asyncio.TimeoutError:
            self._link.report("cut", requests=self._row.admitted())
            for one in self._dispatchers:
                one.cut()
            await self._admission.drained()
            self._end(EXIT_CUT)
        self._end(EXIT_DRAINED)

    async def _beat(self) -> None:
        while True:
            self._link.report("alive", may_drop=True)
            await asyncio.sleep(_ALIVE_EVERY_S)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            for pool in self._pools:
                pool.eject_stalled()
            if self._models is not None:
                self._models.ask_again()

    async def _count(self) -> None:
        while True:
            await asyncio.sleep(_STATS_EVERY_S)
            self._collect()
            if self._access_log is not None and (lines := self._access_log.take()):
                await asyncio.to_thread(self._access_log.write, lines)

    def _collect(self) -> None:
        tallies = self._meter.collect()
        servers = [server for pool in self._pools for server in pool.servers()]
        in_flight, waiting = self._row.admitted(), sum(pool.waiting for pool in self._pools)
        loads, queued = Loads(), Counter[tuple[int, str]]()
        for one in self._dispatchers:
            one.count_load(loads, queued)
        self._metrics.take_loads(loads, queued)
        self._metrics.take(
            tallies, in_flight=in_flight, waiting=waiting, servers=servers, name=self._config.names.of_ensemble
        )
        self._link.report("stats", may_drop=True, **stats_line(tallies, in_flight, waiting, servers))

    async def _close(self) -> None:
        await self._endpoints.stop(self._config.closing_timeout / 3)
        for pool in self._pools:
            await pool.close()
        self._collect()
        if self._access_log is not None:
            self._access_log.close()
        await self._link.close()


_GC_THRESHOLDS = 10_000, 20, 20
"""Requests leave few reference cycles, and frequent collections cost latency."""


async def serve(control_fd: int, table_fd: int) -> int:
    """Run a worker on these descriptors. Returns its exit code."""
    link = await Link.open(control_fd)
    first = await link.receive()
    if first is None:
        return EXIT_ALONE
    config = WorkerConfig.from_json(first)
    set_up(config.log_format)
    worker = Worker(config, LoadTable(table_fd), link)
    # SIGTERM is meant for this worker alone. SIGINT and SIGHUP are ignored: the parent sends `drain` instead.
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, worker.drain)
    # What exists now stays: collections can skip it.
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    return await worker.run()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a worker from its command line. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="tritonembed_manager.router.worker")
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--table-fd", type=int, required=True)
    options = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    return asyncio.run(serve(options.control_fd, options.table_fd))


if __name__ == "__main__":
    sys.exit(main())
