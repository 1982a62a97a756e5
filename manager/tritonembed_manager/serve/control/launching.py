"""Makes the servers of a plan ready to be started: repositories, ports, command lines."""

import os
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from tritonembed_manager.allocator import preload_tcmalloc
from tritonembed_manager.command import server_command
from tritonembed_manager.foreground import MODEL_VARIABLE
from tritonembed_manager.model_check import check_model
from tritonembed_manager.mps import with_mps
from tritonembed_manager.repository import read_configs, render
from tritonembed_manager.serve.control.discovery import Address
from tritonembed_manager.serve.control.launched import LaunchSpec
from tritonembed_manager.serve.control.logs import log
from tritonembed_manager.serve.control.plan import ServerPlan, inherited_devices
from tritonembed_manager.serve.control.port_plan import HeldPorts
from tritonembed_manager.serve.control.settings import LaunchSettings, ServeSettings
from tritonembed_manager.settings import ServerSettings
from tritonembed_manager.tritonserver import Installation, find_tritonserver

_PORTS_EACH = 3


@dataclass(frozen=True)
class Prepared:
    """A server that can be launched."""

    id: str
    spec: LaunchSpec
    address: Address
    replicas: int


def prepare(settings: ServeSettings, launch: LaunchSettings, work: Path, stack: ExitStack) -> list[Prepared]:
    """Write the repositories into `work`, take the ports, which `stack` gives back. Raises StartError, in one line."""
    model = launch.plans[0].render
    check_model(model.model, model.vllm.get("revision"), model.vllm.get("max_model_len"))
    installation = find_tritonserver(launch.tritonserver, work)
    own = (settings.port, settings.http_port)
    held = stack.enter_context(closing(HeldPorts(launch.host, launch.start_port, _PORTS_EACH * len(launch.plans), own)))
    ports, skipped = held.ports, held.skipped
    if skipped:
        log("ports_skipped", f"--start-port: skipped {_listed(skipped)}, which are in use", ports=skipped)
    prepared = []
    for index, plan in enumerate(launch.plans):
        id = f"server-{index}"
        repository = work / id / "model_repository"
        render(repository, plan.render)
        grpc, http, metrics = ports[_PORTS_EACH * index : _PORTS_EACH * (index + 1)]
        server = ServerSettings(
            host=launch.host,
            grpc_port=grpc,
            http_port=http,
            metrics_port=metrics,
            mps=launch.mps,
            startup_timeout=settings.startup_timeout,
            drain_timeout=settings.drain_timeout,
            log_verbose=launch.log_verbose,
            log_requests=False,
        )
        host = f"[{server.local_host}]" if ":" in server.local_host else server.local_host
        address = Address(f"{host}:{grpc}", f"{host}:{http}", f"{host}:{metrics}")
        prepared.append(Prepared(id, _spec(launch, plan, server, installation, repository), address, plan.replicas))
    return prepared


def _spec(
    launch: LaunchSettings, plan: ServerPlan, server: ServerSettings, installation: Installation, repository: Path
) -> LaunchSpec:
    environment = dict(os.environ)
    # model.json has the answer; the variable would win over it.
    environment.pop(MODEL_VARIABLE, None)
    devices = plan.visible_devices(inherited_devices())
    if devices is not None:
        environment["CUDA_VISIBLE_DEVICES"] = devices
    environment |= installation.environment
    configs = read_configs(repository).values()
    gpu_metrics = plan.render.device != "cpu"
    if gpu_metrics:
        environment |= preload_tcmalloc(environment)

    def command(region_prefix: str) -> Sequence[str]:
        plain = server_command(installation, repository, server, region_prefix, gpu_metrics=gpu_metrics)
        return with_mps(plain, configs, environment, repository.parent) if server.mps else plain

    return LaunchSpec(
        command=command,
        environment=environment,
        startup_timeout=server.startup_timeout,
        limits=launch.limits,
        log_everything=launch.log_verbose,
    )


def _listed(ports: Sequence[int]) -> str:
    return ", ".join(map(str, ports[:8])) + (f" and {len(ports) - 8} more" if len(ports) > 8 else "")
