"""The servers, the tasks of each server (process, health checks, removal), and the loading of models."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence

from tritonembed_manager.router.control.discovery import Address
from tritonembed_manager.router.control.health import HealthSettings, HealthWatch, MetricsProgress
from tritonembed_manager.router.control.launched import LaunchedServer, LaunchSpec, PreparedServer
from tritonembed_manager.router.control.registry import RegisteredServer, UpstreamRegistry, upstream_id
from tritonembed_manager.router.control.status import Traffic
from tritonembed_manager.router.data.load_table import LoadTable
from tritonembed_manager.router.interfaces import ServerState
from tritonembed_manager.router.log import log, warn
from tritonembed_manager.server.probe import GrpcProbe, Probe
from tritonembed_protocol.served import FIRST_MODEL, ServedModel

_LEAVE_POLL_S = 0.1
LEAST_LEAVE_S = 1.0
"""Seconds within which workers learn that a server leaves, and the load table shows their requests to it."""


class Servers:
    """Launched and attached servers. `close` ends their tasks.

    models: those that attached servers may serve. The registry has an entry for each model of a server.

    leave_timeout: seconds for the requests of a server that is no longer listed. cleared: called with the id of a
    suspected server that a check found well.
    """

    def __init__(
        self,
        registry: UpstreamRegistry,
        traffic: Traffic,
        table: LoadTable,
        health: HealthSettings,
        *,
        leave_timeout: float,
        cleared: Callable[[str], None] = lambda _: None,
        make_probe: Callable[..., Probe] = GrpcProbe,
        models: Sequence[ServedModel] = (FIRST_MODEL,),
    ) -> None:
        self.registry = registry
        self.launched: dict[str, LaunchedServer] = {}
        self._traffic = traffic
        self._table = table
        self._health = health
        self._leave_timeout = leave_timeout
        self._cleared = cleared
        self._make_probe = make_probe
        self._models = models
        self._watches: dict[str, HealthWatch] = {}
        self._tasks: dict[str, list[asyncio.Task[None]]] = {}
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._specs: dict[str, LaunchSpec] = {}

    def launch(self, server: PreparedServer, *, weight: float = 100.0, is_loaded: bool = True) -> None:
        """Start a server of one model and keep it running. Raises ValueError if no slot is free.

        weight: of its version, in percent. is_loaded: False leaves the start to `load`.
        """
        id = server.id
        upstream = self.registry.add(
            id,
            server.address.grpc,
            http_address=server.address.http,
            metrics_address=server.address.metrics,
            launched=True,
            replicas=server.replicas,
            model=server.version.served,
            version=server.version.name,
            weight=weight,
        )
        upstream.max_length, upstream.adapters = server.max_length, server.adapters
        self._specs[id] = server.spec
        if is_loaded:
            self.load(id)
        else:
            self.registry.set_state(upstream, ServerState.UNLOADED)
        self._watch(upstream, broken=lambda why: self.launched[id].broken(why))

    def load(self, id: str) -> None:
        """Start a launched server, for the first time or after `unload`."""
        upstream = self.registry.upstreams[id]
        server = self.launched[id] = LaunchedServer(self._specs[id], self.registry, upstream)
        run = self._runs[id] = asyncio.create_task(server.run())
        run.add_done_callback(lambda task: self._run_ended(upstream, task))

    async def unload(self, id: str) -> None:
        """End a launched server once nothing is in flight. Returns when its processes have ended."""
        upstream = self.registry.upstreams[id]
        if upstream.state is ServerState.UNLOADED:
            return
        self.registry.set_state(upstream, ServerState.DRAINING, "its model makes room for another")
        await self._until_idle(upstream)
        await self._end(id)
        self.registry.down(upstream, ServerState.UNLOADED, "")

    def set_weight(self, id: str, weight: float) -> None:
        """Give the server's version this share of its model's requests, in percent."""
        self.registry.set_weight(self.registry.upstreams[id], weight)

    async def withdraw(self, id: str) -> None:
        """End a launched server whose version has the weight 0, and forget it. Returns when its processes have ended.

        It stays in use until no request has arrived for a second, because a request of several messages may send more.
        """
        upstream = self.registry.upstreams[id]
        if upstream.state is not ServerState.UNLOADED:
            await self._until_idle(upstream, quiet_for=LEAST_LEAVE_S)
            self.registry.set_state(upstream, ServerState.DRAINING, "its version is not wanted any more")
            await self._until_idle(upstream)
            await self._end(id)
        self._forget(upstream)
        for of_servers in (self.launched, self._runs, self._specs):
            of_servers.pop(id, None)

    async def _end(self, id: str) -> None:
        """End the processes of a launched server."""
        self.launched[id].terminate()
        try:
            await asyncio.wait([self._runs[id]], timeout=self._leave_timeout)
        finally:
            # Cancelling the task kills the processes that have not ended.
            self._runs[id].cancel()
            await asyncio.gather(self._runs[id], return_exceptions=True)

    def follow(self, addresses: Iterable[Address], *, first: bool = False) -> None:
        """Follow the list of attached servers: new servers join, and missing servers leave once they have no requests
        in flight.

        first: this is the list at the start. The vectors of its servers are compared before any of them is READY.
        """
        wanted = {upstream_id(address.grpc, model): (address, model) for address in addresses for model in self._models}
        for id, upstream in list(self.registry.upstreams.items()):
            if not upstream.launched and id not in wanted and id not in self._leaving:
                self._leaving[id] = asyncio.create_task(self._leave(upstream))
        for id, (address, model) in wanted.items():
            if id in self._leaving:
                self._leaving.pop(id).cancel()
                self.registry.set_state(self.registry.upstreams[id], ServerState.UNHEALTHY, "back on the list")
                self._watches[id].check_now()
            elif id not in self.registry.upstreams:
                self._attach(id, address, model, first)

    def suspect(self, id: str, why: str) -> None:
        """A worker suspects the server: check it at once."""
        upstream = self.registry.upstreams.get(id)
        if upstream is not None:
            self.registry.suspected(upstream, why)
            self._watches[id].check_now()

    def ejected(self, id: str, reason: str, seconds: float) -> None:
        """A worker ejected the server for `seconds`, although its checks succeed."""
        upstream = self.registry.upstreams.get(id)
        if upstream is not None:
            self.registry.ejected(upstream, reason, seconds)
            warn("ejected", f"ejected for {seconds:g} s: {reason}", server=id)

    def forgive(self, id: str) -> None:
        """Don't count a server's last death: its cause was a request that is refused from now on."""
        if id in self.launched:
            self.launched[id].forgive()

    def changed(self) -> None:
        """To be called when states may have changed."""
        for server in self.launched.values():
            server.upstream_changed()
        for watch in self._watches.values():
            watch.upstream_changed()

    def retire(self) -> None:
        """Restart no server any more."""
        for server in self.launched.values():
            server.retire()

    async def stop_launched(self, timeout: float) -> None:
        """Ask launched servers to end, and kill those that still run after `timeout` seconds."""
        for tasks in self._tasks.values():
            for task in tasks:
                task.cancel()
        for server in self.launched.values():
            server.terminate()
        if self._runs and timeout > 0:
            await asyncio.wait(self._runs.values(), timeout=timeout)
        await self.close()

    async def close(self) -> None:
        """End all tasks, and with them the launched servers."""
        tasks = [
            *self._runs.values(),
            *self._leaving.values(),
            *(task for tasks in self._tasks.values() for task in tasks),
        ]
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                warn("internal", f"{type(result).__name__} while ending: {result}")

    def _run_ended(self, upstream: RegisteredServer, run: "asyncio.Task[None]") -> None:
        error = None if run.cancelled() else run.exception()
        if error is not None:
            self.registry.down(upstream, ServerState.FAILED, f"{type(error).__name__} while running it: {error}")

    def _attach(self, id: str, address: Address, model: ServedModel, first: bool) -> None:
        try:
            upstream = self.registry.add(
                id,
                address.grpc,
                http_address=address.http,
                metrics_address=address.metrics,
                awaited=first,
                model=model,
            )
        except ValueError as error:
            warn("server_ignored", str(error), server=id)
            return
        self._watch(upstream, broken=None)

    def _watch(self, upstream: RegisteredServer, broken: Callable[[str], None] | None) -> None:
        seen = 0

        def alive() -> bool:
            nonlocal seen
            before, seen = seen, self._traffic.answered(upstream.id)
            return seen > before

        probe = self._make_probe(upstream.address, model=upstream.model)
        watch = HealthWatch(
            self.registry,
            upstream,
            probe,
            self._health,
            alive=alive,
            progress=MetricsProgress(upstream.metrics_address),
            broken=broken,
            cleared=self._cleared,
        )
        self._watches[upstream.id] = watch
        self._tasks[upstream.id] = [asyncio.create_task(watch.run())]

    async def _until_idle(self, upstream: RegisteredServer, quiet_for: float = 0.0) -> None:
        """Wait until workers know that the server is draining and have no requests there, at most `leave_timeout`.

        quiet_for: seconds for which they must have had no requests there.
        """
        began = busy_at = time.monotonic()
        while (now := time.monotonic()) - began < self._leave_timeout:
            if self._table.in_flight(upstream.slot):
                busy_at = now
            elif now - began >= LEAST_LEAVE_S and now - busy_at >= quiet_for:
                break
            await asyncio.sleep(_LEAVE_POLL_S)

    async def _leave(self, upstream: RegisteredServer) -> None:
        self.registry.set_state(upstream, ServerState.DRAINING, "no longer listed")
        await self._until_idle(upstream)
        self._leaving.pop(upstream.id, None)
        self._forget(upstream)

    def _forget(self, upstream: RegisteredServer) -> None:
        del self._watches[upstream.id]
        for task in self._tasks.pop(upstream.id):
            task.cancel()
        self.registry.remove(upstream.id)
        self._traffic.forget(upstream.id)


LEAST_LOADED_S = 2.0
"""Seconds for which a loaded model is not unloaded, so that requests that waited for it can reach it."""
_LOOK_EVERY_S = 0.1


class ModelLoader:
    """Loads a model when a request asks for it, and unloads the least recently used model to make room (--max-loaded).

    Models are loaded one after the other. A model that makes room finishes its requests in flight. New requests for it
    wait at the workers, and ask for it again.

    models: their ensembles; the first `most` are loaded. load: begins to start a model's servers. unload: returns
    when they have ended. is_starting: whether a model's first answer is still awaited. clock: seconds.
    """

    def __init__(
        self,
        models: Iterable[str],
        most: int,
        *,
        load: Callable[[str], None],
        unload: Callable[[str], Awaitable[None]],
        is_starting: Callable[[str], bool],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._most = most
        self._load, self._unload, self._is_starting = load, unload, is_starting
        self._clock, self._sleep = clock, sleep
        self._used = dict.fromkeys(list(models)[:most], clock())
        """When each loaded model was last used."""
        self._ready_at: dict[str, float] = {}
        """When each model was last seen starting."""
        self._leaving: str | None = None
        self._wanted: deque[str] = deque()
        self._news = asyncio.Event()

    @property
    def loaded(self) -> list[str]:
        """The models that are in memory, or on their way there."""
        return list(self._used)

    def want(self, model: str) -> None:
        """A request waits for this model."""
        if model not in self._wanted and (model not in self._used or model == self._leaving):
            self._wanted.append(model)
            self._news.set()

    def offer(self, model: str) -> None:
        """Add a model that is new in the models file, and load it if there is room."""
        if len(self._used) < self._most:
            self.want(model)

    def forget(self, model: str) -> None:
        """The servers of this model have ended."""
        self._used.pop(model, None)
        self._ready_at.pop(model, None)
        if model in self._wanted:
            self._wanted.remove(model)

    def used(self, model: str) -> None:
        """A request went to a server of this model."""
        if model in self._used:
            self._used[model] = self._clock()

    async def run(self) -> None:
        """Load wanted models until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._wanted:
                model = self._wanted.popleft()
                if model not in self._used:
                    await self._make_room(model)
                    self._used[model] = self._ready_at[model] = self._clock()
                    self._load(model)

    async def _make_room(self, wanted: str) -> None:
        while len(self._used) >= self._most:
            victim = min(self._used, key=lambda model: self._used[model])
            while self._is_new(victim):
                await self._sleep(_LOOK_EVERY_S)
            log("model_unloaded", f"unloading {victim}, the least recently used, for {wanted}")
            self._leaving = victim
            try:
                await self._unload(victim)
            finally:
                self._leaving = None
            # Its servers may have been replaced meanwhile.
            self._used.pop(victim, None)
            self._ready_at.pop(victim, None)

    def _is_new(self, model: str) -> bool:
        """Whether requests that waited for the model may not have reached it yet."""
        now = self._clock()
        if self._is_starting(model):
            self._ready_at[model] = now
        return now - self._ready_at.get(model, 0.0) < LEAST_LOADED_S
