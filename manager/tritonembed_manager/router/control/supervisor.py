"""The supervisor: the parent process of `serve`, from the start of servers and workers to the end of the drain."""

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tritonembed_manager.errors import ManagerError
from tritonembed_manager.router.control.discovery import ServerLists
from tritonembed_manager.router.control.envoy.data_plane import EnvoyDataPlane
from tritonembed_manager.router.control.health import ScrapeWatch, event_or_time
from tritonembed_manager.router.control.launched import PreparedServer
from tritonembed_manager.router.control.registry import UpstreamRegistry
from tritonembed_manager.router.control.rollouts import Prepare, Rollouts
from tritonembed_manager.router.control.servers import ModelLoader, Servers
from tritonembed_manager.router.control.settings import SERVERS_END_S, DrainTime, ModelsPlan, ServeSettings
from tritonembed_manager.router.control.start import ServerPreparation, StartJudge
from tritonembed_manager.router.control.status import Snapshots, Traffic
from tritonembed_manager.router.control.tenants import Accounts
from tritonembed_manager.router.control.workers import Command, WorkerPool, mark_dead, worker_command
from tritonembed_manager.router.control.xds.server import OPTION as XDS_PORT
from tritonembed_manager.router.control.xds.server import XdsServer
from tritonembed_manager.router.data.failover import Quarantine
from tritonembed_manager.router.data.load_table import LoadTable
from tritonembed_manager.router.data.tenants import Tenant
from tritonembed_manager.router.interfaces import ServerState
from tritonembed_manager.router.link import TO_ALL_WORKERS
from tritonembed_manager.router.log import log, set_up, warn
from tritonembed_manager.router.tls import Pems
from tritonembed_manager.server.machine import check_gpu, check_ports, raise_limit
from tritonembed_manager.server.probe import GrpcProbe
from tritonembed_manager.server.run_folder import RunFolder, run_folder
from tritonembed_manager.server.service import keep_watchdog, notify
from tritonembed_manager.server.signals import StopSignals, stop_signals
from tritonembed_protocol.served import FIRST

STATUS_EVERY_S = 1.0


class Supervisor:
    """To be created and run inside an event loop, in the main thread. servers: the servers to launch."""

    def __init__(
        self,
        settings: ServeSettings,
        servers: Sequence[PreparedServer],
        metrics_folder: Path,
        *,
        worker_command: Command = worker_command,
        sockets: Path | None = None,
        prepare: Prepare = lambda _versions: [],
    ) -> None:
        """sockets: a private folder with a short path, if Envoy is the data plane.

        prepare: as in Rollouts.
        """
        self._settings = settings
        self._prepared = servers
        self._began = time.monotonic()
        # The last row is Envoy's, here and in the quota table.
        rows = settings.workers + (settings.envoy is not None)
        self._table = LoadTable.create(rows)
        self._accounts: Accounts | None = None
        if settings.tenants is not None:
            self._accounts = Accounts(rows, settings.tenants, settings.usage_file, settings.quota_store)
        self._traffic = Traffic(time.monotonic)
        self._registry = UpstreamRegistry(
            self._table.slots, time.monotonic, self._changed, busy=lambda slot: self._table.in_flight(slot) > 0
        )
        self._drain_time = DrainTime.of(settings.drain_timeout, launches=bool(servers))
        self._servers = Servers(
            self._registry,
            self._traffic,
            self._table,
            settings.health,
            leave_timeout=settings.drain_timeout,
            cleared=lambda id: self._workers.send({"type": "cleared", "server": id}),
            make_probe=partial(GrpcProbe, tls=settings.server_tls),
            models=[each.served for each in settings.names.loaded],
        )
        versions = settings.launch.versions if settings.launch else []
        self._rollouts = Rollouts(
            self._servers,
            ModelsPlan(replace(settings.names), versions),
            servers,
            settings.names,
            prepare,
            names_changed=lambda: self._workers.send(self._names_line()),
        )
        self._loader = self._rollouts.loader = self._make_loader()
        self._loading: asyncio.Task[None] | None = None
        self._scrapes = ScrapeWatch(self._registry)
        self._snapshots = Snapshots(
            self._registry,
            self._traffic,
            self._table,
            names=settings.names,
            policy=settings.policy,
            warnings=settings.warnings,
            more_warnings=self._warnings,
            not_admitted=lambda: self._envoy.in_flight() if self._envoy is not None else 0,
        )
        environment = {
            # Otherwise gRPC's core would write its own lines to stderr.
            "GRPC_VERBOSITY": "NONE",
            **os.environ,
            "PROMETHEUS_MULTIPROC_DIR": str(metrics_folder),
        }
        self._workers = WorkerPool(
            settings.worker_config(
                self._table.slots, self._drain_time, sockets, self._accounts.table.fd if self._accounts else None
            ),
            self._table,
            first=lambda: [self._servers_line(), self._status_line(), self._quarantine_line()],
            receive=self._handle,
            gone=lambda index, pid: self._worker_gone(index, pid, metrics_folder),
            command=worker_command,
            environment=environment,
        )
        self._quarantine = Quarantine()
        self._envoy: EnvoyDataPlane | None = None
        if settings.envoy is not None and sockets is not None:
            row = self._table.row(settings.workers)
            quotas = self._accounts.table if self._accounts is not None else None
            self._envoy = EnvoyDataPlane(
                settings, settings.envoy, sockets, row, self._traffic.add, self._workers.news, quotas
            )
        self._xds: XdsServer | None = None
        if settings.xds is not None:
            models = [names.served.name for names in settings.names.models]
            pems = settings.tls.value if settings.tls else None
            self._xds = XdsServer(*settings.xds, settings.policy, models, pems)
        self._draining = self._lame_duck = False
        self._seen = 0
        """Signals that have taken effect. Another signal forces the next step."""
        self._dirty = False
        self._news = self._workers.news
        self._stops = StopSignals()
        self._signals = self._stops.received
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Serve until a signal stops it. Raises ManagerError if it can't start, was forced to stop, or cut requests."""
        loop = asyncio.get_running_loop()
        for number in stop_signals():
            loop.add_signal_handler(number, self._stop_requested, number)
        try:
            if await self._start():
                await self._wait(lambda: bool(self._signals))
                await self._be_a_lame_duck()
                await self._drain()
        finally:
            self._workers.kill()
            if self._envoy is not None:
                self._envoy.kill()
            await self._rollouts.close()
            await self._servers.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            if self._accounts is not None:
                self._accounts.close()
            self._table.close()

    def _make_loader(self) -> ModelLoader | None:
        """The loader with --max-loaded; None if all models stay loaded."""
        launch = self._settings.launch
        models = [names.served.name for names in self._settings.names.loaded]
        most = launch.max_loaded if launch else None
        if launch is None or most is None or (most >= len(models) and launch.models_file is None):
            return None
        servers_of = self._rollouts.servers_of

        def load(model: str) -> None:
            for id in servers_of(model):
                self._servers.load(id)

        async def unload(model: str) -> None:
            await asyncio.gather(*map(self._servers.unload, servers_of(model)))

        def is_starting(model: str) -> bool:
            return any(self._registry.upstreams[id].state is ServerState.STARTING for id in servers_of(model))

        return ModelLoader(models, most, load=load, unload=unload, is_starting=is_starting)

    def _used(self, servers: Mapping[str, Mapping[str, Any]]) -> None:
        """servers: counts since the last line, by server."""
        for id, counted in servers.items():
            is_used = counted.get("requests") or counted.get("in_flight")
            if is_used and self._loader is not None and id in self._registry.upstreams:
                self._loader.used(self._registry.upstreams[id].model.name)

    async def _start(self) -> bool:
        """Start servers and workers. Returns whether they started; if not, there is nothing to drain."""
        self._background(self._workers.run())
        self._background(keep_watchdog())
        if self._envoy is not None:
            self._background(self._envoy.run())
        if self._xds is not None:
            self._background(self._xds.run())
        for server in self._prepared:
            is_loaded = self._loader is None or server.version.served.name in self._loader.loaded
            self._servers.launch(
                server, weight=self._rollouts.weight_before_checks(server.version), is_loaded=is_loaded
            )
        if self._loader is not None:
            self._loading = self._background(self._loader.run())
        attach = self._settings.attach
        if attach is not None:
            self._background(self._scrapes.run())
            lists = ServerLists(attach.servers, attach.file, attach.dns, self._servers.follow)
            self._servers.follow(await lists.first(), first=True)
            self._background(lists.run())
            if attach.tls is not None:
                self._background(attach.tls.watch(self._workers.set_server_tls))
        self._background(self._send_status())
        if self._settings.tls is not None:
            self._background(self._settings.tls.watch(self._set_tls))
        if self._settings.tenants is not None:
            self._background(self._settings.tenants.watch(self._set_tenants))
        for task in self._accounts.tasks() if self._accounts is not None else ():
            self._background(task)
        judge = StartJudge(
            self._registry, self._servers.launched, self._workers, self._envoy, names=self._settings.names
        )
        await self._wait(lambda: bool(self._signals) or judge.started(), self._settings.startup_timeout)
        if self._signals:
            log("stopped", f"{self._signals[-1].name}: start abandoned")
            return False
        if not judge.started():
            limit = f"{self._settings.startup_timeout:g} s (--startup-timeout)"
            raise ManagerError(f"not ready after {limit}: {judge.reason()}")
        at, settings = self._settings.host, self._settings
        self._rollouts.begin()
        if settings.launch is not None and settings.launch.models_file is not None:
            self._background(settings.launch.models_file.watch(self._rollouts.follow))
        addresses = f"grpc {at}:{settings.port} http {at}:{settings.http_port} metrics {at}:{settings.http_port}"
        took = time.monotonic() - self._began
        print(f"READY {addresses} in {took:.1f} s", flush=True)
        notify("READY=1", f"STATUS=ready after {took:.1f} s")
        return True

    async def _be_a_lame_duck(self) -> None:
        """Report negative health to load balancers, and still answer their requests."""
        notify("STOPPING=1", "STATUS=finishing requests in flight")
        seconds = self._settings.lame_duck
        if not seconds:
            return
        self._lame_duck, name = True, self._signals[-1].name
        log(
            "lame_duck",
            f"{name}: health is negative, and requests are answered for {seconds:g} s more (signal again to drain)",
        )
        self._workers.be_lame_ducks()
        self._workers.send(self._status_line())
        self._seen = len(self._signals)
        await self._wait(self._is_forced, seconds)

    async def _drain(self) -> None:
        self._draining, self._seen = True, len(self._signals)
        parts, until = self._drain_time, time.monotonic() + self._settings.drain_timeout
        log("draining", f"{self._signals[-1].name}: finishing requests in flight (signal again to kill)")
        await self._rollouts.close()
        if self._loading is not None:
            # A model that is starting will serve. Workers refuse requests that wait for other models.
            self._loading.cancel()
        self._servers.retire()
        self._workers.send(self._status_line())
        self._workers.drain()
        if self._xds is not None:
            self._xds.drain()
        parts_of_the_plane = [self._tasks[0]]
        if self._envoy is not None:
            self._envoy.drain()
            parts_of_the_plane.append(self._background(self._envoy.drained()))

        def finished() -> bool:
            return all(part.done() for part in parts_of_the_plane)

        await self._wait(lambda: finished() or self._is_forced(), parts.work + parts.closing)
        self._stop_if_forced()
        unfinished = self._unfinished(ended=finished())
        self._workers.kill()
        if self._envoy is not None:
            await self._envoy.end()
        # No request is in flight at the servers, so a slow end is not awaited.
        left = until - time.monotonic() - parts.killing
        stopping = self._background(self._servers.stop_launched(min(left, SERVERS_END_S)))
        await self._wait(lambda: stopping.done() or self._is_forced())
        self._stop_if_forced()
        if unfinished:
            raise ManagerError(unfinished)
        log("stopped", "stopped; no request was in flight any more")

    def _unfinished(self, *, ended: bool) -> str | None:
        """The requests that were lost in the drain, in one line; None if there are none."""
        pool, late = self._workers, f"did not finish within {self._settings.drain_timeout:g} s (--drain-timeout)"
        if pool.cut:
            return f"{pool.cut} request{'s' if pool.cut > 1 else ''} {late}: cut"
        if not ended:
            return f"requests in flight {late}: killed"
        return pool.died and f"{pool.died} before its requests in flight were finished"

    def _is_forced(self) -> bool:
        return len(self._signals) > self._seen

    def _stop_if_forced(self) -> None:
        if self._is_forced():
            raise ManagerError(f"{self._signals[-1].name} while stopping: killed")

    async def _wait(self, condition: Callable[[], bool], timeout: float | None = None) -> None:
        """Wait until the condition holds; each change checks it again. Raises the error of a failed background task."""
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

    def _stop_requested(self, number: int) -> None:
        self._stops.receive(number)
        self._news.set()

    def _changed(self) -> None:
        if not self._dirty:
            self._dirty = True
            asyncio.get_running_loop().call_soon(self._broadcast)

    def _broadcast(self) -> None:
        self._dirty = False
        self._servers.changed()
        self._workers.send(self._servers_line())
        # Versions that get no requests here get none through Envoy and xDS either.
        views = [view for view in self._registry.views() if view.weight > 0]
        if self._envoy is not None:
            # Requests for further models go to the workers.
            self._envoy.update([view for view in views if view.ensemble == FIRST])
        if self._xds is not None:
            self._xds.update(views)
        # At once, so that the first status after READY shows the ready servers.
        self._workers.send(self._status_line(), may_drop=True)
        self._news.set()

    def _worker_gone(self, index: int, pid: int, metrics_folder: Path) -> None:
        if self._accounts is not None:
            self._accounts.worker_gone(index)
        mark_dead(pid, metrics_folder)

    def _set_tls(self, pems: Pems) -> None:
        if self._xds is not None:
            self._xds.set_tls(pems)
        if self._envoy is not None:
            self._envoy.set_tls(pems)
        else:
            self._workers.set_tls(pems)

    def _set_tenants(self, tenants: Sequence[Tenant]) -> None:
        self._workers.set_tenants(tenants)
        if self._envoy is not None:
            self._envoy.set_tenants(tenants)

    def _warnings(self) -> list[str]:
        launch = self._settings.launch
        models_file = launch.models_file if launch else None
        of_models = [*(models_file.warnings if models_file else ()), *self._rollouts.warnings]
        return [*self._scrapes.warnings(), *of_models, *(self._accounts.warnings if self._accounts else ())]

    def _handle(self, worker: int, line: Mapping[str, Any]) -> None:  # noqa: ARG002
        if line["type"] == "suspect":
            self._servers.suspect(str(line["server"]), str(line["why"]))
        elif line["type"] == "ejected":
            self._servers.ejected(str(line["server"]), str(line["why"]), float(line["seconds"]))
            self._workers.send(dict(line))
        elif line["type"] == "quarantined":
            self._quarantine_request(str(line["digest"]), line["servers"])
        elif line["type"] == "stats":
            self._traffic.add(line)
            self._used(line["servers"])
        elif line["type"] == "wanted" and self._loader is not None:
            self._loader.want(str(line["model"]))
        elif line["type"] in TO_ALL_WORKERS:
            self._workers.send(dict(line))

    def _quarantine_request(self, digest: str, servers: Sequence[str]) -> None:
        self._quarantine.add(digest)
        for server in servers:
            self._servers.forgive(server)
        warn(
            "quarantined",
            f"{' and '.join(servers)} died with the same request in flight: requests like it are refused now",
        )
        self._workers.send(self._quarantine_line())
        if self._envoy is not None:
            self._envoy.set_quarantine(self._quarantine.entries())

    def _quarantine_line(self) -> dict[str, Any]:
        return {"type": "quarantine", "until": self._quarantine.entries()}

    async def _send_status(self) -> None:
        while True:
            await asyncio.sleep(STATUS_EVERY_S)
            self._workers.send(self._status_line(), may_drop=True)

    def _servers_line(self) -> dict[str, Any]:
        return {"type": "servers", "servers": [view.to_json() for view in self._registry.views()]}

    def _names_line(self) -> dict[str, Any]:
        return {"type": "names", "names": self._settings.names.json}

    def _status_line(self) -> dict[str, Any]:
        taken = self._snapshots.take(
            draining=self._draining, lame_duck=self._lame_duck, workers=self._workers.figures()
        )
        return taken if self._envoy is None else {**taken, "envoy": self._envoy.figures()}


def run_serve(settings: ServeSettings) -> None:
    """Serve until a signal stops it. Raises ManagerError if it can't start, was forced to stop, or cut requests."""
    launch = settings.launch
    if launch and launch.plans[0].render.device == "cuda":
        check_gpu("--device cuda")
    set_up(settings.log_format)
    if (few := raise_limit()) is not None:
        warn("few_descriptors", few)
    # Workers listen with SO_REUSEPORT, so they would silently share a port with another manager.
    ports, hosts = {"--port": settings.port, "--http-port": settings.http_port}, {}
    if settings.xds is not None:
        hosts[XDS_PORT], ports[XDS_PORT] = settings.xds
    check_ports(settings.host, ports, hosts)
    with run_folder() as run:
        asyncio.run(_run(settings, run))


async def _run(settings: ServeSettings, run: RunFolder) -> None:
    metrics = run.path / "metrics"
    metrics.mkdir(mode=0o700)
    with ExitStack() as stack:
        preparation = ServerPreparation(settings, settings.launch, run, stack) if settings.launch else None
        servers = preparation.prepare(settings.launch.versions) if preparation and settings.launch else []
        sockets = None
        if settings.envoy is not None:
            sockets = run.path / "envoy"
            sockets.mkdir(mode=0o700)
        prepare: Prepare = preparation.prepare if preparation else lambda _versions: []
        await Supervisor(settings, servers, metrics, sockets=sockets, prepare=prepare).run()
