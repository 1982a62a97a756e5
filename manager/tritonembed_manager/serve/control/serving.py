"""Runs `serve` from its settings to its end."""

import asyncio
from contextlib import ExitStack
from pathlib import Path

from tritonembed_manager.machine import check_gpu
from tritonembed_manager.ports import check_ports
from tritonembed_manager.serve.control import logs
from tritonembed_manager.serve.control.launching import prepare
from tritonembed_manager.serve.control.settings import ServeSettings
from tritonembed_manager.serve.control.supervisor import Supervisor
from tritonembed_manager.work_folder import work_folder


def run_serve(settings: ServeSettings) -> None:
    """Serve until a signal stops it. Raises ManagerError when it can't start or had to be forced."""
    launch = settings.launch
    if launch and launch.plans[0].render.device == "cuda":
        check_gpu("--device cuda")
    logs.set_up(settings.log_format)
    # Workers share their ports with whoever asks for that, another manager as well: only here it is noticed.
    check_ports(settings.host, {"--port": settings.port, "--http-port": settings.http_port})
    with work_folder(launch.work_dir if launch else None) as work:
        asyncio.run(_run(settings, work))


async def _run(settings: ServeSettings, work: Path) -> None:
    metrics = work / "metrics"
    metrics.mkdir(exist_ok=True)
    for left_over in metrics.glob("*.db"):
        left_over.unlink()
    with ExitStack() as stack:
        servers = prepare(settings, settings.launch, work, stack) if settings.launch else []
        await Supervisor(settings, servers, metrics).run()
