"""Keeps Envoy running, gives it the servers and their states, and reads its figures."""

import asyncio
import resource
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tritonembed_manager.router.control.envoy import clusters, configuration, listeners
from tritonembed_manager.router.control.envoy.clusters import EndpointList
from tritonembed_manager.router.control.envoy.configuration import XdsFiles, bootstrap
from tritonembed_manager.router.control.envoy.process import AdminError, EnvoyAdmin, EnvoyProcess, HostFigures
from tritonembed_manager.router.control.envoy.settings import EnvoySettings
from tritonembed_manager.router.control.envoy.tenants import UNFINISHED, EnvoyTenants
from tritonembed_manager.router.control.restarts import RestartLimits, Restarts
from tritonembed_manager.router.control.settings import ServeSettings
from tritonembed_manager.router.control.workers import how_it_ended
from tritonembed_manager.router.data.load_table import LoadRow
from tritonembed_manager.router.data.quotas import Quotas, QuotaTable
from tritonembed_manager.router.data.tenants import Tenant, with_triton_models
from tritonembed_manager.router.interfaces import ServerView
from tritonembed_manager.router.link import Sockets
from tritonembed_manager.router.log import log, warn
from tritonembed_manager.router.tls import Pems

LIMITS = RestartLimits(limit=1_000_000, window=60.0, first_delay=0.2, longest_delay=5.0)
"""Envoy is restarted without a limit, because it is needed to serve at all."""
_HOPELESS_STARTS = 3
_LOOK_EVERY_S = 0.2
_HANGS_S, _STARTS_S = 6.0, 60.0
"""Seconds of silence after which a running and a starting Envoy are ended."""
_LEAST_FAILURES = 3
_ENDS_S, _POLL_S = 1.0, 0.02
_BOTH = 2


class EnvoyDataPlane:
    """Envoy in front of the servers and of the workers.

    folder: for its files and sockets, with a short path (0700). row: of the load table, for Envoy's requests. count:
    called with a line of `stats`, as a worker sends it. news: set whenever `ready` or `outage` has changed.
    quota_table: with tenants; the cells after those of the workers are Envoy's.
    """

    def __init__(
        self,
        settings: ServeSettings,
        envoy: EnvoySettings,
        folder: Path,
        row: LoadRow,
        count: Callable[[Mapping[str, Any]], None],
        news: asyncio.Event,
        quota_table: QuotaTable | None = None,
    ) -> None:
        self._settings = settings
        self._envoy = envoy
        self._row = row
        self._count = count
        self._files = XdsFiles(folder)
        self._admin = EnvoyAdmin(Sockets(folder).admin)
        self._servers = EndpointList("Envoy", self._take_endpoints)
        self._stopping = False
        self._quarantined: set[int] = set()
        self._ids: dict[str, tuple[str, int]] = {}
        """Ids and slots of the servers, by the address that Envoy knows."""
        self._seen: dict[str, HostFigures] = {}
        self._strangers = 0
        """Requests without a tenant that are counted."""
        self._process: EnvoyProcess | None = None
        self.restarts = 0
        self.ready = False
        """Whether it listens on both ports."""
        self._ever_ready = self._cannot_listen = False
        self.outage: str | None = None
        """The reason why Envoy can't start at all."""
        self._news = news
        self._quota_table = quota_table
        self._quotas = Quotas(quota_table, settings.workers) if quota_table else None
        self._tenants: Sequence[Tenant] = settings.tenants.tenants if settings.tenants else ()
        self._bootstrap = self._write_files()

    async def run(self) -> None:
        """Keep Envoy running until cancelled."""
        restarts = Restarts(LIMITS)
        writing = asyncio.ensure_future(self._servers.run())
        try:
            while True:
                status = await self._live()
                if self._stopping:
                    return
                self.restarts += 1
                if not self._ever_ready and (self._cannot_listen or self.restarts >= _HOPELESS_STARTS):
                    self.outage = self._reason(status)
                    self._news.set()
                    return
                warn("envoy_ended", f"Envoy ended ({how_it_ended(status)}); it starts again")
                await asyncio.sleep(restarts.died(time.monotonic()) or 0.0)
        finally:
            writing.cancel()
            await self._admin.close()

    def update(self, views: Sequence[ServerView]) -> None:
        """Give Envoy the servers and their states."""
        self._servers.update(views)

    def set_quarantine(self, digests: Iterable[str]) -> None:
        """Send all requests that could be in quarantine to the workers. digests: as data/failover.py makes them."""
        self._quarantined = {int(digest.partition(":")[0]) for digest in digests}
        self._write_routes()

    def set_tenants(self, tenants: Sequence[Tenant]) -> None:
        """Serve other tenants. Connections stay; requests in flight end under their earlier limits."""
        self._tenants = tenants
        self._write_routes()

    def set_tls(self, pems: Pems) -> None:
        """Use another certificate for new connections."""
        self._files.write("certificate", configuration.certificate(pems))
        if pems.client_ca is not None:
            self._files.write("client_ca", configuration.client_ca(pems.client_ca))

    def drain(self) -> None:
        """Send new requests to the workers, which refuse them, and none to the servers."""
        self._servers.drain()

    async def drained(self) -> None:
        """Wait until Envoy has received the drain, and its requests at the servers have ended."""
        quiet = 0
        # A thread of Envoy may learn of the drain one check later.
        while quiet < _BOTH and self._process is not None:
            await asyncio.sleep(_LOOK_EVERY_S)
            try:
                hosts = (await self._admin.servers()).values()
            except AdminError:
                continue
            quiet = 0 if any(host.takes_new or host.in_flight for host in hosts) else quiet + 1

    async def end(self) -> None:
        """End Envoy for good, after its access log is written. No request may be in flight."""
        self._stopping = True
        if self._process is not None:
            self._process.terminate()
        until = time.monotonic() + _ENDS_S
        while self._process is not None and time.monotonic() < until:
            await asyncio.sleep(_POLL_S)
        self.kill()

    def kill(self) -> None:
        """End Envoy at once, for good."""
        self._stopping = True
        if self._process is not None:
            self._process.kill()

    def in_flight(self) -> int:
        """Envoy's requests at the servers, by its last figures."""
        return sum(host.in_flight for host in self._seen.values())

    def figures(self) -> dict[str, Any]:
        """Envoy's figures for the status."""
        return {"ready": self.ready, "restarts": self.restarts, "threads": self._envoy.threads}

    async def _live(self) -> int:
        """Run Envoy once. Returns its exit status."""
        inherited = [self._quota_table.fd] if self._quota_table is not None else []
        process = self._process = EnvoyProcess(
            self._envoy.binary, self._bootstrap, self._envoy.threads, self._line, inherited
        )
        looking = asyncio.ensure_future(self._look(process))
        try:
            return await process.ended()
        finally:
            looking.cancel()
            process.kill()
            self._process, self.ready, self._seen = None, False, {}
            self._row.show({})
            if self._quota_table is not None:
                self._quota_table.zero(self._settings.workers)

    async def _look(self, process: EnvoyProcess) -> None:
        """Read figures until cancelled. Ends Envoy if it hangs, or can't listen."""
        silent_since = time.monotonic()
        failures = 0
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            try:
                if self.ready or await self._became_ready(process):
                    self._take(await self._admin.servers())
                    failures, silent_since = 0, time.monotonic()
            except AdminError:
                failures += 1
            silent = time.monotonic() - silent_since
            # Checks are counted, too: time in which this process did not run is no silence of Envoy.
            if silent > (_HANGS_S if self.ready else _STARTS_S) and failures >= _LEAST_FAILURES:
                warn("envoy_hangs", f"Envoy has not answered its manager for {silent:.0f} s")
                process.kill()
                return

    async def _became_ready(self, process: EnvoyProcess) -> bool:
        listening = await self._admin.listening()
        if listening.failed:
            self._cannot_listen = True
            process.kill()
            return False
        if not listening.live or listening.ports < _BOTH:
            return False
        self.ready = self._ever_ready = True
        log("envoy_ready", f"Envoy listens, with {self._envoy.threads} threads")
        self._news.set()
        return True

    def _take(self, hosts: dict[str, HostFigures]) -> None:
        known = {address: self._ids[address] for address in hosts if address in self._ids}
        self._row.show({slot: hosts[address].in_flight for address, (_, slot) in known.items()})
        counted: dict[str, dict[str, Any]] = {}
        for address, (id, _) in known.items():
            now, before = hosts[address], self._seen.get(address)
            if before is None or now.requests < before.requests:
                before = HostFigures(0, 0, 0, True)
            if now.requests > before.requests:
                errors = max(0, now.errors - before.errors)
                counted[id] = {"requests": now.requests - before.requests, "errors": errors}
        self._seen = hosts
        self._count_strangers()
        if counted:
            totals = {key: sum(each[key] for each in counted.values()) for key in ("requests", "errors")}
            self._count({**totals, "servers": counted})

    def _count_strangers(self) -> None:
        if self._quota_table is None:
            return
        strangers = self._quota_table.strangers
        if new := strangers - self._strangers:
            self._strangers = strangers
            self._count({"requests": new, "errors": new, "codes": {"UNAUTHENTICATED": new}})

    def _take_endpoints(self, found: Sequence[tuple[ServerView, clusters.Endpoint]]) -> None:
        self._ids = {endpoint.address: (view.id, view.slot) for view, endpoint in found}
        self._files.write("endpoints", clusters.endpoints([endpoint for _, endpoint in found]))

    def _write_files(self) -> Path:
        """Write all files that Envoy reads at its start. Returns the path of the bootstrap."""
        settings, files = self._settings, self._files
        pems = settings.tls.value if settings.tls else None
        if pems is not None:
            self.set_tls(pems)
        listener = listeners.ListenerSettings(
            settings.host,
            settings.port,
            settings.http_port,
            settings.http_header_timeout,
            tls=pems is not None,
            client_ca=pems is not None and pems.client_ca is not None,
            access_log=self._envoy.access_log,
            tenants=self._quotas is not None,
        )
        files.write(
            "listeners", *_typed("envoy.config.listener.v3.Listener", listeners.listeners(listener, files.folder))
        )
        all_clusters = clusters.clusters(
            settings.policy, settings.max_in_flight, files.path("endpoints"), Sockets(files.folder), settings.workers
        )
        files.write("clusters", *_typed("envoy.config.cluster.v3.Cluster", all_clusters))
        files.write("endpoints", clusters.endpoints(()))
        self._write_routes()
        return files.write_plain("bootstrap", bootstrap(files.folder, resource.getrlimit(resource.RLIMIT_NOFILE)[0]))

    def _write_routes(self) -> None:
        settings, door = self._settings, None
        if self._quota_table is not None:
            known = [with_triton_models(tenant, settings.names) for tenant in self._tenants]
            door = EnvoyTenants(known, self._quota_table, settings.workers)
        found = listeners.grpc_routes(settings.forward_timeout, self._envoy.max_bytes, self._quarantined, door)
        self._files.write("routes", found)

    def _line(self, text: str) -> None:
        if self._quotas is not None and text.startswith(UNFINISHED):
            self._quotas.unfinished(int(text.removeprefix(UNFINISHED).split()[0]))
        elif self._envoy.log_verbose:
            log("envoy", text)

    def _reason(self, status: int) -> str:
        at = self._settings
        if self._cannot_listen:
            return f"--port {at.port}, --http-port {at.http_port}: Envoy cannot listen on {at.host}"
        return f"Envoy does not start ({how_it_ended(status)}; --log-verbose shows more)"


def _typed(name: str, messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"@type": f"type.googleapis.com/{name}", **message} for message in messages]
