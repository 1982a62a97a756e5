"""Runs a tritonserver in the foreground: for `replica` until a signal drains it, and for each candidate of `tune`."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from tritonembed_manager.errors import ManagerError, StartError
from tritonembed_manager.server.life import Cause, Life
from tritonembed_manager.server.machine import check_gpu, check_ports, raise_limit
from tritonembed_manager.server.probe import GrpcProbe, ProbeError
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
from tritonembed_manager.server.service import keep_watchdog, notify
from tritonembed_manager.server.settings import RenderSettings, ServerSettings, model_reference
from tritonembed_manager.server.signals import StopSignals, stop_signals
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
        self._stops = StopSignals()

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
            serving, watchdog = asyncio.create_task(self._serve()), asyncio.create_task(keep_watchdog())
            try:
                ended, _ = await asyncio.wait({serving, self._stopped}, return_when=asyncio.FIRST_COMPLETED)
                for one in ended:
                    one.result()
            finally:
                serving.cancel()
                watchdog.cancel()
                await asyncio.gather(serving, watchdog, return_exceptions=True)

    async def _serve(self) -> None:
        await self._server.until_ready()
        at = self._settings
        others = f"http {at.http_host}:{at.http_port} metrics {at.metrics_host}:{at.metrics_port}"
        took = time.monotonic() - self._server.began
        print(f"READY grpc {at.host}:{at.grpc_port} {others} in {took:.1f} s", flush=True)
        notify("READY=1", f"STATUS=ready after {took:.1f} s")
        await self._server.over

    def _report_step(self, step: str) -> None:
        now = time.monotonic()
        if now - self._reported >= _STILL_STARTING_EVERY_S:
            self._reported = now
            say(f"still starting: {step}")

    def _stop(self, number: signal.Signals) -> None:
        if not self._stops.receive(number):
            return
        if self._server.is_ending:
            self._fail(ManagerError(f"{number.name} while stopping: killed"))
        elif not self._server.is_ready:
            say(f"{number.name}: start abandoned")
            self._finish()
        else:
            notify("STOPPING=1", "STATUS=finishing requests in flight")
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


_RETRY_S = 0.1
_AFTER_A_REFUSAL_S = 1.0
_REFUSALS = 5
"""A loaded model that refuses a valid sentence this many times counts as broken."""
_ATTEMPT_S = 60.0
_QUESTION_S = 1.0
_LOOK_EVERY_S = 0.5


class StartedServer:
    """One server, from its start until it ends or breaks. An async context manager, at whose end nothing is left.

    start: starts the server's process, in the main thread. models: those that it serves.
    show: receives the log lines to show.
    doing: receives the current step of the start.
    """

    def __init__(
        self,
        settings: ServerSettings,
        start: Callable[[], ServerProcess],
        *,
        models: Sequence[ServedModel] = (FIRST_MODEL,),
        show: Callable[[str], None] = lambda _: None,
        doing: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._settings = settings
        self._models = models
        self._start = start
        self._show = show
        self._doing = doing
        self._no_answer = "it does not listen yet"
        self.is_ready = False

    async def __aenter__(self) -> "StartedServer":
        self.began = time.monotonic()
        self._probes = [GrpcProbe(self._settings.local_address, model=model) for model in self._models]
        self._life = Life(
            self._start(),
            show=self._show,
            doing=self._doing,
            is_missed=None if self._settings.model_control_mode == "none" else self._is_missed,
            look_every=_LOOK_EVERY_S,
            everything=self._settings.log_verbose,
        )
        self.over = asyncio.create_task(self._watch())
        """Done once the server has ended on request. Raises ManagerError if the server broke."""
        self._too_late = asyncio.get_running_loop().call_later(self._settings.startup_timeout, self._check_startup)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._too_late.cancel()
        self.over.cancel()
        await asyncio.gather(self.over, return_exceptions=True)
        for probe in self._probes:
            await probe.close()
        await self._life.end()

    async def until_ready(self) -> None:
        """Wait until an inference has succeeded. Raises ManagerError if the server breaks or refuses."""
        asking = asyncio.create_task(self._until_it_infers())
        try:
            await asyncio.wait({asking, self.over}, return_when=asyncio.FIRST_COMPLETED)
            if self._life.cause is None:
                asking.result()
                self._life.became_ready()
            if self._life.cause is not None:
                await self.over
            self.is_ready = True
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    @property
    def is_ending(self) -> bool:
        """Whether the server's end was requested."""
        return self._life.terminating

    def terminate(self) -> None:
        """Ask the server to finish its requests in flight and end."""
        self._life.terminate()

    async def _watch(self) -> None:
        why = await self._life.until_over()
        if self._life.terminating:
            return
        cause = self._life.cause
        if not self.is_ready and cause in (Cause.STUB, Cause.HUNG, Cause.OTHER):
            self._life.show_held_back()
        if self._life.our_reason is not None:
            raise StartError(f"{why} (--log-verbose shows more)")
        if cause is Cause.EXIT:
            more = f": {self._life.last_words()}" if self.is_ready else " (--log-verbose shows more)"
            raise ManagerError(why + more)
        raise ManagerError(f"{why}: the server is stopped" if cause is Cause.STUB else why)

    async def _until_it_infers(self) -> None:
        for probe, model in zip(self._probes, self._models, strict=True):
            await self._until_a_model_infers(probe, "" if len(self._models) == 1 else f" of the model {model.name}")

    async def _until_a_model_infers(self, probe: GrpcProbe, which: str) -> None:
        refusals = 0
        while True:
            try:
                return await probe.infers(_ATTEMPT_S)
            except ProbeError as error:
                refusals = refusals + 1 if error.answered else 0
                if error.answered or error.timed_out:
                    self._no_answer = str(error)
                if refusals == _REFUSALS:
                    raise ManagerError(f"the server started, but an inference{which} fails: {error}") from None
                await asyncio.sleep(_AFTER_A_REFUSAL_S if refusals else _RETRY_S)

    def _check_startup(self) -> None:
        if not self.is_ready:
            limit = f"{self._settings.startup_timeout:g} s ({self._settings.startup_limit})"
            self._life.broken(f"not ready after {limit}: {self._no_answer}")

    async def _is_missed(self, model: str, running: int) -> bool:
        """Whether a model should have more than `running` instances; True if the server does not answer.

        Under explicit and poll control, a stub also ends if its model is unloaded or replaced.
        """
        try:
            wanted = await self._probes[0].instances(model, _QUESTION_S)
        except ProbeError:
            return True
        return wanted is not None and running < wanted
