"""The servers with everything that runs for each of them: its process, its checks, its leaving."""

import asyncio
import time
from collections.abc import Callable, Iterable

from tritonembed_manager.serve.control.discovery import Address
from tritonembed_manager.serve.control.health import HealthSettings, HealthWatch
from tritonembed_manager.serve.control.launched import LaunchedServer, LaunchSpec
from tritonembed_manager.serve.control.logs import warn
from tritonembed_manager.serve.control.probe import GrpcProbe, Probe
from tritonembed_manager.serve.control.progress import MetricsProgress
from tritonembed_manager.serve.control.roster import Member, Roster
from tritonembed_manager.serve.control.traffic import Traffic
from tritonembed_manager.serve.load_table import LoadTable
from tritonembed_manager.serve.model import ServerState

_LEAVE_POLL_S = 0.1
LEAST_LEAVE_S = 1.0
"""Workers hear in that time that a server leaves, and what they had sent to it shows in the load table."""


class Servers:
    """Launched and attached ones. Close it to end all that runs for them.

    cleared: told the id of a server that somebody doubted, and that is well.
    """

    def __init__(
        self,
        roster: Roster,
        traffic: Traffic,
        table: LoadTable,
        health: HealthSettings,
        *,
        leave_timeout: float,
        cleared: Callable[[str], None] = lambda _: None,
        make_probe: Callable[[str], Probe] = GrpcProbe,
    ) -> None:
        self.roster = roster
        self.launched: dict[str, LaunchedServer] = {}
        self._traffic = traffic
        self._table = table
        self._health = health
        self._leave_timeout = leave_timeout
        self._cleared = cleared
        self._make_probe = make_probe
        self._watches: dict[str, HealthWatch] = {}
        self._tasks: dict[str, list[asyncio.Task[None]]] = {}
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._runs: list[asyncio.Task[None]] = []

    def launch(self, id: str, spec: LaunchSpec, address: Address, replicas: int) -> LaunchedServer:
        """Start a server and keep it running."""
        member = self.roster.add(
            id,
            address.grpc,
            http_address=address.http,
            metrics_address=address.metrics,
            launched=True,
            replicas=replicas,
        )
        server = self.launched[id] = LaunchedServer(spec, self.roster, member)
        self._watch(member, broken=server.broken)
        run = asyncio.create_task(server.run())
        run.add_done_callback(lambda task: self._run_ended(member, task))
        self._runs.append(run)
        return server

    def follow(self, addresses: Iterable[Address], *, first: bool = False) -> None:
        """These are the attached servers now: new ones join, missing ones leave once nothing is in flight there.

        first: the list at the start, whose vectors are compared before any of them is taken.
        """
        wanted = {address.grpc: address for address in addresses}
        for id, member in list(self.roster.members.items()):
            if not member.launched and id not in wanted and id not in self._leaving:
                self._leaving[id] = asyncio.create_task(self._leave(member))
        for id, address in wanted.items():
            if id in self._leaving:
                self._leaving.pop(id).cancel()
                self.roster.set_state(self.roster.members[id], ServerState.UNHEALTHY, "back on the list")
                self._watches[id].check_now()
            elif id not in self.roster.members:
                self._attach(id, address, first)

    def suspect(self, id: str, why: str) -> None:
        """A worker doubts that it is well: look at once."""
        member = self.roster.members.get(id)
        if member is not None:
            self.roster.suspected(member, why)
            self._watches[id].check_now()

    def changed(self) -> None:
        """To be called when states may have changed."""
        for server in self.launched.values():
            server.member_changed()

    def retire(self) -> None:
        """From now on none is started again."""
        for server in self.launched.values():
            server.retire()

    async def stop_launched(self, timeout: float) -> None:
        """Ask them to end, and kill those that don't within `timeout` seconds."""
        for tasks in self._tasks.values():
            for task in tasks:
                task.cancel()
        for server in self.launched.values():
            server.terminate()
        if self._runs and timeout > 0:
            await asyncio.wait(self._runs, timeout=timeout)
        await self.close()

    async def close(self) -> None:
        """End all that runs, the launched servers with it."""
        tasks = [*self._runs, *self._leaving.values(), *(task for tasks in self._tasks.values() for task in tasks)]
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                warn("internal", f"{type(result).__name__} while ending: {result}")

    def _run_ended(self, member: Member, run: "asyncio.Task[None]") -> None:
        error = None if run.cancelled() else run.exception()
        if error is not None:
            self.roster.down(member, ServerState.FAILED, f"{type(error).__name__} while running it: {error}")

    def _attach(self, id: str, address: Address, first: bool) -> None:
        try:
            member = self.roster.add(
                id, address.grpc, http_address=address.http, metrics_address=address.metrics, awaited=first
            )
        except ValueError as error:
            warn("server_ignored", str(error), server=id)
            return
        self._watch(member, broken=None)

    def _watch(self, member: Member, broken: Callable[[str], None] | None) -> None:
        seen = 0

        def alive() -> bool:
            nonlocal seen
            before, seen = seen, self._traffic.answered(member.id)
            return seen > before

        probe = self._make_probe(member.address)
        watch = HealthWatch(
            self.roster,
            member,
            probe,
            self._health,
            alive=alive,
            progress=MetricsProgress(member.metrics_address),
            broken=broken,
            cleared=self._cleared,
        )
        self._watches[member.id] = watch
        self._tasks[member.id] = [asyncio.create_task(watch.run())]

    async def _leave(self, member: Member) -> None:
        self.roster.set_state(member, ServerState.DRAINING, "no longer listed")
        began = time.monotonic()
        while (passed := time.monotonic() - began) < self._leave_timeout:
            if passed >= LEAST_LEAVE_S and not self._table.in_flight(member.slot):
                break
            await asyncio.sleep(_LEAVE_POLL_S)
        self._leaving.pop(member.id, None)
        del self._watches[member.id]
        for task in self._tasks.pop(member.id):
            task.cancel()
        self.roster.remove(member.id)
        self._traffic.forget(member.id)
