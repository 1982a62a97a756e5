"""The start of `serve`: prepares the servers of the plan, and judges whether everything has started.

Servers get repositories, ports and command lines.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from tritonembed_manager.errors import ManagerError, StartError
from tritonembed_manager.router.control.discovery import Address
from tritonembed_manager.router.control.envoy.data_plane import EnvoyDataPlane
from tritonembed_manager.router.control.launched import LaunchedServer, LaunchSpec, PreparedServer
from tritonembed_manager.router.control.plan import ServerPlan, VersionPlan
from tritonembed_manager.router.control.registry import UpstreamRegistry, upstream_id
from tritonembed_manager.router.control.settings import LaunchSettings, ServeSettings
from tritonembed_manager.router.control.workers import WorkerPool
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.interfaces import ServerState
from tritonembed_manager.router.log import log, warn
from tritonembed_manager.server.machine import HeldPorts
from tritonembed_manager.server.repository import MODEL_VARIABLE, adapter_digests, check_models, render
from tritonembed_manager.server.run_folder import RunFolder, warning, work_folder
from tritonembed_manager.server.settings import LOOPBACK, ServerSettings
from tritonembed_manager.server.tritonserver import Installation, command_and_environment, find_tritonserver

_SHOWS_MORE = "(--log-verbose shows more)"


class StartJudge:
    """Judges whether the manager is ready, by its servers and workers."""

    def __init__(
        self,
        registry: UpstreamRegistry,
        launched: Mapping[str, LaunchedServer],
        workers: WorkerPool,
        envoy: EnvoyDataPlane | None = None,
        *,
        names: ServedNames | None = None,
    ) -> None:
        """names: of the models; each needs a server."""
        self._names = names or ServedNames()
        self._registry = registry
        self._envoy = envoy
        self._launched = launched
        self._workers = workers

    def started(self) -> bool:
        """Whether every worker listens, each model has a READY server, and no other server is still starting.

        Raises ManagerError if that has become impossible: no worker can listen, or no launched server of a model
        starts.
        """
        if self._workers.outage is not None:
            raise StartError(self._workers.outage)
        if self._envoy is not None and self._envoy.outage is not None:
            raise StartError(self._envoy.outage)
        missing = self._missing()
        for names in missing:
            self._raise_if_hopeless(names)
        if missing:
            return False
        listening = self._workers.ready and (self._envoy is None or self._envoy.ready)
        return listening and not any(self._is_starting(id) for id in self._registry.upstreams)

    def reason(self) -> str:
        """The reason why it has not started, in one line."""
        if not self._workers.ready:
            return "a worker does not listen yet"
        if self._envoy is not None and not self._envoy.ready:
            return "Envoy does not listen yet"
        missing = [names.served for names in self._missing()]
        upstreams = [one for one in self._registry.upstreams.values() if not missing or one.model in missing]
        reasons = [f"{upstream.id}: {upstream.why}" for upstream in upstreams if upstream.why]
        return reasons[0] if reasons else "no server is known"

    def _is_starting(self, id: str) -> bool:
        if id in self._launched and self._launched[id].failed_first_start.is_set():
            return False
        return self._registry.upstreams[id].state is ServerState.STARTING

    def _missing(self) -> list[ServedNames]:
        """The models with a version without a READY server; not models that their first request loads."""
        upstreams = self._registry.upstreams.values()
        usable = (ServerState.READY, ServerState.UNLOADED)
        ready = {(one.model, one.version) for one in upstreams if one.state in usable}
        lacking = {one.model for one in upstreams if (one.model, one.version) not in ready}
        having = {model for model, _ in ready} - lacking
        return [names for names in self._names.loaded if names.served not in having]

    def _raise_if_hopeless(self, names: ServedNames) -> None:
        which = f"{names.model}: " if self._names.more else ""
        versions: dict[str, list[LaunchedServer]] = {}
        for server in self._launched.values():
            if server.upstream.model == names.served:
                versions.setdefault(server.upstream.version, []).append(server)
            if server.upstream.model == names.served and server.our_reason is not None:
                raise StartError(f"{which}{server.our_reason} {_SHOWS_MORE}")
        for launched in versions.values():
            if all(server.failed_first_start.is_set() for server in launched):
                raise ManagerError(f"{which}{launched[0].first_failure} {_SHOWS_MORE}")


_PORTS_EACH = 3


class ServerPreparation:
    """Gives servers repositories, ports and command lines. Ports are held until they are released or `stack` closes.

    Raises StartError, in one line.
    """

    def __init__(self, settings: ServeSettings, launch: LaunchSettings, run: RunFolder, stack: ExitStack) -> None:
        self._settings = settings
        self._launch = launch
        self._run = run
        self._stack = stack
        self._count = 0
        self._installation = find_tritonserver(launch.tritonserver, run.path)
        self._work = work_folder(launch.work_dir, run)
        if line := warning(launch.work_dir):
            warn("work_dir", line)

    def prepare(self, versions: Sequence[VersionPlan]) -> list[PreparedServer]:
        """The servers of these versions. Raises StartError, in one line."""
        lengths = check_models([version.plans[0].render for version in versions])
        launch, is_first = self._launch, not self._count
        count = sum(len(version.plans) for version in versions)
        own = (self._settings.port, self._settings.http_port)
        held = HeldPorts(launch.host, launch.start_port, _PORTS_EACH * count, own)
        self._stack.enter_context(closing(held))
        if held.skipped and is_first:
            log("ports_skipped", f"--start-port: skipped {_listed(held.skipped)}, which are in use", ports=held.skipped)
        ports = iter(held.ports)
        return [
            self._prepare(version, plan, [next(ports) for _ in range(_PORTS_EACH)], length, held)
            for version, length in zip(versions, lengths, strict=True)
            for plan in version.plans
        ]

    def _prepare(
        self, version: VersionPlan, plan: ServerPlan, ports: list[int], length: int | None, held: HeldPorts
    ) -> PreparedServer:
        launch, settings = self._launch, self._settings
        id = upstream_id(f"server-{self._count}", version.served)
        self._count += 1
        repository = self._work / id / "model_repository"
        render(repository, plan.render)
        repository.chmod(0o700)
        grpc, http, metrics = ports
        server = ServerSettings(
            host=launch.host,
            grpc_port=grpc,
            http_port=http,
            metrics_port=metrics,
            http_host=LOOPBACK,
            metrics_host=LOOPBACK,
            model_control_mode="none",
            tritonserver=launch.tritonserver,
            mps=launch.mps,
            startup_timeout=settings.startup_timeout,
            drain_timeout=settings.drain_timeout,
            log_verbose=launch.log_verbose,
            log_requests=False,
            triton_traces=launch.triton_traces,
        )
        address = Address(server.local_address, f"{server.http_host}:{http}", f"{server.metrics_host}:{metrics}")
        spec = _spec(launch, plan, server, self._installation, repository, self._run)

        def release() -> None:
            held.release(ports)
            for folder in (repository.parent, self._run.path / id):
                shutil.rmtree(folder, ignore_errors=True)

        return PreparedServer(id, spec, address, plan.replicas, version, length, release, adapter_digests(plan.render))


def _spec(
    launch: LaunchSettings,
    plan: ServerPlan,
    server: ServerSettings,
    installation: Installation,
    repository: Path,
    run: RunFolder,
) -> LaunchSpec:
    environment = dict(os.environ)
    # The variable would override the model in model.json.
    environment.pop(MODEL_VARIABLE, None)
    devices = plan.visible_devices(environment.get("CUDA_VISIBLE_DEVICES"))
    if devices is not None:
        environment["CUDA_VISIBLE_DEVICES"] = devices
    # Not in --work-dir, whose path may be too long for a socket.
    folder = run.path / repository.parent.name
    folder.mkdir(mode=0o700, exist_ok=True)
    command, environment = command_and_environment(installation, repository, server, environment, folder)
    return LaunchSpec(
        command=command,
        environment=environment,
        startup_timeout=server.startup_timeout,
        limits=launch.limits,
        log_everything=launch.log_verbose,
        home=run.home(),
        keep_open=[run.lock],
    )


def _listed(ports: Sequence[int]) -> str:
    return ", ".join(map(str, ports[:8])) + (f" and {len(ports) - 8} more" if len(ports) > 8 else "")
