"""Follows the models file: launches and ends servers, model by model, until they are the versions in the file.

A new version is launched beside the old one, and gets no requests until all of its servers are ready and agree. Then
all workers switch over in one step, and the old version finishes its requests and ends. If the new version does not
start, the old version stays. A model that can't be changed holds up no other model.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tritonembed_manager.errors import StartError
from tritonembed_manager.router.control.launched import PreparedServer
from tritonembed_manager.router.control.plan import VersionPlan, with_version_names
from tritonembed_manager.router.control.servers import ModelLoader, Servers
from tritonembed_manager.router.control.settings import ModelsPlan
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.interfaces import ServerState
from tritonembed_manager.router.log import log, warn

_LOOK_EVERY_S = 0.1
Prepare = Callable[[Sequence[VersionPlan]], list[PreparedServer]]


@dataclass(eq=False)
class _Running:
    """A version and its servers. is_checked: whether they have been ready."""

    plan: VersionPlan
    servers: list[PreparedServer]
    is_checked: bool = False


class Rollouts:
    """plan: of the start. started: its servers. prepare: prepares servers for their launch; raises StartError. names:
    of the models; they follow the file. names_changed: called when they have changed.
    """

    def __init__(
        self,
        servers: Servers,
        plan: ModelsPlan,
        started: Sequence[PreparedServer],
        names: ServedNames,
        prepare: Prepare,
        names_changed: Callable[[], None],
    ) -> None:
        self.loader: ModelLoader | None = None
        """The loader with --max-loaded, else None."""
        self._servers = servers
        self._names = names
        self._prepare = prepare
        self._names_changed = names_changed
        self._plan = plan
        self._targets: dict[str, list[VersionPlan]] = _by_model(plan.versions)
        self._running = {
            model: [_Running(version, [one for one in started if one.version is version], True) for version in versions]
            for model, versions in self._targets.items()
        }
        self._active = _by_ensemble(names)
        """The names of the models that are served."""
        self._failures: dict[str, str] = {}
        self._notes: dict[str, str] = {}
        """Warnings about versions that get another share of the requests than in the file."""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._background: set[asyncio.Task[None]] = set()

    @property
    def warnings(self) -> list[str]:
        """Lines for the status: the models that are not as in the file, and why."""
        return [*self._failures.values(), *self._notes.values()]

    def servers_of(self, model: str) -> list[str]:
        """Ids of a model's servers, except those that are leaving."""
        return [server.id for version in self._running.get(model, ()) for server in version.servers]

    def weight_before_checks(self, version: VersionPlan) -> float:
        """The share of the requests that a version gets at the start, before the vectors of versions are compared."""
        largest = max(self._targets[version.served.name], key=lambda one: one.weight)
        return 100.0 if version is largest else 0.0

    def begin(self) -> None:
        """The servers of the start are ready: divide the requests between the versions of each model."""
        for model, versions in self._running.items():
            if len(versions) > 1:
                self._split(model)

    def follow(self, plan: ModelsPlan) -> None:
        """Bring the servers to these models of the file."""
        self._plan = plan
        targets = _by_model(plan.versions)
        for model in {**self._running, **targets}:
            versions = targets.get(model, [])
            if _asked(versions) == _asked(self._targets.get(model, [])) and model not in self._failures:
                continue
            self._targets[model] = versions
            self._failures.pop(model, None)
            if model in self._tasks:
                self._tasks[model].cancel()
            self._tasks[model] = self._in_background(self._roll_out(model, versions))
        self._set_names()

    async def close(self) -> None:
        """Make no further changes."""
        tasks = list(self._background)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _roll_out(self, model: str, versions: Sequence[VersionPlan]) -> None:
        running = self._running.setdefault(model, [])
        superseded = [version for version in running if not (version.is_checked or _matching(version.plan, versions))]
        running[:] = [version for version in running if version not in superseded]
        self._end(superseded, model)
        if not versions:
            await self._until_another_is_first(model)
        elif (reason := await self._launch_missing(model, versions)) is not None:
            shown = self._plan.name_of(model)
            self._failures[model] = f"{shown}: {reason}; what is served of it stays as it was"
            warn("model_not_changed", self._failures[model])
            return
        gone = [version for version in running if _matching(version.plan, versions) is None]
        for version in running:
            plan = _matching(version.plan, versions)
            version.plan = replace(version.plan, weight=plan.weight if plan else 0.0)
        self._split(model, gone)
        running[:] = [version for version in running if version not in gone]
        self._announce(model, gone)
        self._end(gone, model)

    def _split(self, model: str, gone: Sequence[_Running] = ()) -> None:
        """Give each version of a model its share of the requests.

        A version gets no share if its vectors have other dimensions than those of the largest share: a client that asks
        for no space could not store them.
        """
        staying = [version for version in self._running[model] if version not in gone]
        largest = max(staying, key=lambda version: version.plan.weight, default=None)
        self._notes.pop(model, None)
        for version in self._running[model]:
            weight = version.plan.weight
            if largest and version in staying and (note := self._misfit(version, largest)):
                weight, self._notes[model] = 0.0, f"{self._plan.name_of(model)}: {note}"
                warn("version_without_requests", self._notes[model])
            for server in version.servers:
                self._servers.set_weight(server.id, weight)

    def _misfit(self, version: _Running, largest: _Running) -> str:
        """Why a version gets no share of the requests; empty if it gets its share."""
        own, usual = self._dimensions(version), self._dimensions(largest)
        if not own or not usual or own == usual:
            return ""
        return (
            f"vectors of the version {version.plan.name} have {own} dimensions, those of {largest.plan.name} {usual}: "
            "it gets only requests that ask for its embedding space"
        )

    def _dimensions(self, version: _Running) -> int:
        """The dimensions of a model's vectors; 0 if it makes no vectors, or if they are not known."""
        return max(self._servers.registry.upstreams[server.id].dimensions for server in version.servers)

    async def _launch_missing(self, model: str, versions: Sequence[VersionPlan]) -> str | None:
        """Launch versions that don't run, and wait until they are ready. If one fails, end them; returns the reason."""
        running = self._running[model]
        missing = [plan for plan in versions if not any(_is_same(plan, version.plan) for version in running)]
        named = with_version_names(missing, [version.plan.name for version in running])
        try:
            prepared = await asyncio.to_thread(self._prepare, named) if named else []
        except StartError as error:
            return str(error)
        for plan in named:
            servers = [one for one in prepared if one.version is plan]
            running.append(_Running(plan, servers, is_checked=self.loader is not None))
            for server in servers:
                self._servers.launch(server, weight=0.0, is_loaded=self.loader is None)
        new = [version for version in running if not version.is_checked and _matching(version.plan, versions)]
        reason = await self._until_ready(new)
        if reason is not None:
            running[:] = [version for version in running if version not in new]
            self._end(new, model)
        for version in new:
            version.is_checked = True
        return reason

    async def _until_ready(self, versions: Sequence[_Running]) -> str | None:
        """Wait until all servers are ready. Returns the reason if one can't become ready."""
        ids = [server.id for version in versions for server in version.servers]
        while True:
            states = {id: self._servers.registry.upstreams[id].state for id in ids}
            for id, state in states.items():
                launched = self._servers.launched[id]
                if launched.failed_first_start.is_set():
                    return launched.our_reason or launched.first_failure
                if state is ServerState.REFUSED:
                    return self._servers.registry.upstreams[id].why
            if all(state is ServerState.READY for state in states.values()):
                return None
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _until_another_is_first(self, model: str) -> None:
        while self._names.served.name == model:
            await asyncio.sleep(_LOOK_EVERY_S)

    def _announce(self, model: str, gone: Sequence[_Running]) -> None:
        shown = self._names.of_ensemble(model)
        is_new = model not in self._active
        if self._running[model]:
            self._active[model] = _by_ensemble(self._plan.names)[model]
            shown = self._plan.name_of(model)
        else:
            self._active.pop(model, None)
            del self._running[model]
        self._set_names()
        if is_new and model not in self._active:
            return
        if model not in self._active:
            log("model_removed", f"{shown} is no longer served: its servers finish")
        elif is_new:
            log("model_added", f"{shown} is served")
            if self.loader is not None:
                self.loader.offer(model)
        else:
            weights = ", ".join(f"{one.plan.name} {one.plan.weight:g} %" for one in self._running[model])
            log("model_changed", f"{shown} is served by {weights}" + (": the earlier one finishes" if gone else ""))

    def _set_names(self) -> None:
        """Set the names to those of the models that are served now, in the order of the file."""
        wanted = [names.served.name for names in self._plan.names.loaded]
        first = wanted[0] if wanted[0] in self._active else self._names.served.name
        order = [first, *(model for model in wanted if model in self._active and model != first)]
        names, *more = [self._active[model][0] for model in order]
        adapters = [each for model in order for each in self._active[model][1:]]
        found = replace(names, more=(*more, *adapters))
        if found != self._names:
            self._names.become(found)
            self._names_changed()

    def _end(self, versions: Sequence[_Running], model: str) -> None:
        """End versions that get no requests any more, once they have no requests in flight."""
        if versions:
            self._in_background(self._withdraw(versions, model))

    async def _withdraw(self, versions: Sequence[_Running], model: str) -> None:
        servers = [server for version in versions for server in version.servers]
        await asyncio.gather(*(self._servers.withdraw(server.id) for server in servers))
        for server in servers:
            server.release()
        if self.loader is not None:
            self.loader.forget(model)
            if self._running.get(model):
                self.loader.offer(model)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            warn("internal", f"{type(error).__name__} while following the models file: {error}")


def _by_model(versions: Sequence[VersionPlan]) -> dict[str, list[VersionPlan]]:
    found: dict[str, list[VersionPlan]] = {}
    for version in versions:
        found.setdefault(version.served.name, []).append(version)
    return found


def _by_ensemble(names: ServedNames) -> dict[str, list[ServedNames]]:
    """The names of each model, followed by those of its adapters."""
    found = {each.served.name: [replace(each, more=())] for each in names.loaded}
    for each in names.models:
        if each.served.base:
            found[names.base_of(each).served.name].append(replace(each, more=()))
    return found


def _asked(versions: Sequence[VersionPlan]) -> list[tuple[Any, float]]:
    return [(version.entry, version.weight) for version in versions]


def _is_same(one: VersionPlan, other: VersionPlan) -> bool:
    return one.entry == other.entry


def _matching(plan: VersionPlan, versions: Sequence[VersionPlan]) -> VersionPlan | None:
    """The version in the list with the same plan."""
    return next((version for version in versions if _is_same(plan, version)), None)
