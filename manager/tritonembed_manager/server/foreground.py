"""`tritonembed-manager replica`: starts, watches and drains one tritonserver in the foreground."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from tritonembed_manager.errors import ManagerError, StartError
from tritonembed_manager.server.machine import check_gpu, raise_limit
from tritonembed_manager.server.ports import check_ports
from tritonembed_manager.server.process import ServerProcess
from tritonembed_manager.server.repository import (
    MODEL_VARIABLE,
    check_models,
    instance_kinds,
    read_configs,
    served_models,
)
from tritonembed_manager.server.repository import render as render_repository
from tritonembed_manager.server.run_folder import new_region_prefix, plain, run_folder, warning, work_folder
from tritonembed_manager.server.settings import RenderSettings, ServerSettings, model_reference
from tritonembed_manager.server.signals import stop_signals
from tritonembed_manager.server.started import StartedServer
from tritonembed_manager.server.tritonserver import command_and_environment, find_tritonserver
from tritonembed_protocol.printable import printable
from tritonembed_protocol.served import FIRST_MODEL, ServedModel

_STILL_STARTING_EVERY_S = 5.0
_GRACE_AFTER_DRAIN_S = 10.0


def run_replica(
    server: ServerSettings,
    *,
    models: Sequence[RenderSettings] = (),
    repository: Path | None = None,
    work_dir: Path | None = None,
) -> None:
    """Run one server until a signal stops it. It serves `repository`, or else one rendered for `models`.

    Raises ManagerError if the server can't start or breaks. None of its processes, shared memory and temporary files
    is left in either case.
    """
    if models and models[0].device == "cuda":
        check_gpu("--device cuda")
    if (few := raise_limit()) is not None:
        say(few)
    check_ports(server.host, server.ports(), server.hosts())
    check_models(models)
    with run_folder() as run:
        work = work_folder(work_dir, run)
        if line := warning(work_dir):
            say(line)
        environment = dict(os.environ)
        if repository is None:
            repository = work / "model_repository"
            render_repository(repository, *models)
            repository.chmod(0o700)
            # model.json names the model now, and the variable would override it.
            environment.pop(MODEL_VARIABLE, None)
        elif MODEL_VARIABLE in environment:
            environment[MODEL_VARIABLE] = model_reference(environment[MODEL_VARIABLE])
        named, repository = repository, plain(repository, run.path)
        configs = read_configs(repository)
        kinds = instance_kinds(configs.values())
        if not kinds:
            raise StartError(f"--model-repository: {repository} holds no models")
        if "KIND_GPU" in kinds and not models:
            check_gpu("--model-repository (KIND_GPU)")
        installation = find_tritonserver(server.tritonserver, run.path)
        command, environment = command_and_environment(installation, repository, server, environment, run.path)
        say(f"starting {installation.binary.name} for {' and '.join(model.model for model in models) or named}")

        def start() -> ServerProcess:
            prefix = new_region_prefix()
            return ServerProcess(command(prefix), environment, prefix, home=run.home(), keep_open=[run.lock])

        asyncio.run(ForegroundServer(server, served_models(configs)).run(start))


class ForegroundServer:
    """Runs one server until a stop signal drains it or a part of it breaks."""

    def __init__(self, settings: ServerSettings, models: Sequence[ServedModel] = (FIRST_MODEL,)) -> None:
        self._settings = settings
        self._models = models
        self._reported = time.monotonic()

    async def run(self, start: Callable[[], ServerProcess]) -> None:
        """Return once a signal has stopped the server. Raises ManagerError if it did not start or broke.

        start: starts the server's process. None of its processes is left in either case.
        """
        loop = asyncio.get_running_loop()
        self._stopped: asyncio.Future[None] = loop.create_future()
        self._server = StartedServer(self._settings, start, models=self._models, show=_show, doing=self._report_step)
        for number in stop_signals():
            loop.add_signal_handler(number, self._stop, number)
        async with self._server:
            serving = asyncio.create_task(self._serve())
            try:
                ended, _ = await asyncio.wait({serving, self._stopped}, return_when=asyncio.FIRST_COMPLETED)
                for one in ended:
                    one.result()
            finally:
                serving.cancel()
                await asyncio.gather(serving, return_exceptions=True)

    async def _serve(self) -> None:
        await self._server.until_ready()
        at = self._settings
        others = f"http {at.http_host}:{at.http_port} metrics {at.metrics_host}:{at.metrics_port}"
        took = time.monotonic() - self._server.began
        print(f"READY grpc {at.host}:{at.grpc_port} {others} in {took:.1f} s", flush=True)
        await self._server.over

    def _report_step(self, step: str) -> None:
        now = time.monotonic()
        if now - self._reported >= _STILL_STARTING_EVERY_S:
            self._reported = now
            say(f"still starting: {step}")

    def _stop(self, number: signal.Signals) -> None:
        if self._server.is_ending:
            self._fail(ManagerError(f"{number.name} while stopping: killed"))
        elif not self._server.is_ready:
            say(f"{number.name}: start abandoned")
            self._finish()
        else:
            say(f"{number.name}: finishing requests in flight (signal again to kill)")
            limit = self._settings.drain_timeout
            late = ManagerError(f"the server did not stop within {limit:g} s: killed")
            asyncio.get_running_loop().call_later(limit + _GRACE_AFTER_DRAIN_S, self._fail, late)
            self._server.terminate()

    def _finish(self) -> None:
        with suppress(asyncio.InvalidStateError):
            self._stopped.set_result(None)

    def _fail(self, error: ManagerError) -> None:
        with suppress(asyncio.InvalidStateError):
            self._stopped.set_exception(error)


def say(line: str) -> None:
    """Print a progress line to stderr."""
    print(f"tritonembed-manager: {printable(line)}", file=sys.stderr, flush=True)


def _show(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
