"""`tritonembed-manager replica`: a work folder, a repository in it, and one server on it."""

import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from tritonembed_manager.allocator import preload_tcmalloc
from tritonembed_manager.command import server_command
from tritonembed_manager.errors import StartError
from tritonembed_manager.machine import check_gpu
from tritonembed_manager.model_check import check_model
from tritonembed_manager.model_config import instance_kinds
from tritonembed_manager.mps import with_mps
from tritonembed_manager.ports import check_ports
from tritonembed_manager.replica import Replica, say
from tritonembed_manager.repository import read_configs
from tritonembed_manager.repository import render as render_repository
from tritonembed_manager.server_process import ServerProcess
from tritonembed_manager.settings import RenderSettings, ServerSettings
from tritonembed_manager.shared_memory import new_region_prefix
from tritonembed_manager.signals import SignalPipe
from tritonembed_manager.tritonserver import find_tritonserver
from tritonembed_manager.work_folder import work_folder

MODEL_VARIABLE = "TRITONEMBED_MODEL"


def run_replica(
    server: ServerSettings,
    *,
    render: RenderSettings | None = None,
    repository: Path | None = None,
    work_dir: Path | None = None,
) -> None:
    """Run one server until a signal stops it. Either `render` or `repository` says what it serves.

    Raises ManagerError when it can't start or breaks; nothing of it is left either way.
    """
    if render is not None and render.device == "cuda":
        check_gpu("--device cuda")
    check_ports(server.host, server.ports())
    if render is not None:
        check_model(render.model, render.vllm.get("revision"), render.vllm.get("max_model_len"))
    with SignalPipe() as signals, work_folder(work_dir) as work:
        environment = dict(os.environ)
        if repository is None:
            assert render is not None
            repository = work / "model_repository"
            render_repository(repository, render)
            # model.json has the answer now; the variable would win over it.
            environment.pop(MODEL_VARIABLE, None)
        configs = read_configs(repository).values()
        kinds = instance_kinds(configs)
        if not kinds:
            raise StartError(f"--model-repository: {repository} holds no models")
        if "KIND_GPU" in kinds and render is None:
            check_gpu("--model-repository (KIND_GPU)")
        installation = find_tritonserver(server.tritonserver, work)
        region_prefix = new_region_prefix()
        on_gpu = kinds != {"KIND_CPU"}
        command: Sequence[str] = server_command(installation, repository, server, region_prefix, gpu_metrics=on_gpu)
        environment |= installation.environment
        if on_gpu:
            environment |= preload_tcmalloc(environment)
        if server.mps:
            command = with_mps(command, configs, environment, work)
        say(f"starting {installation.binary.name} for {render.model if render else repository}")
        with closing(ServerProcess(command, environment, region_prefix)) as process:
            Replica(process, server).run(signals)
