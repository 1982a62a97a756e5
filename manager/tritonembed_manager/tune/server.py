"""The server of one candidate: a tritonserver on free loopback ports, which ends with its trial."""

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tritonembed_manager.errors import ManagerError
from tritonembed_manager.server.foreground import StartedServer
from tritonembed_manager.server.machine import FIRST_PORT, HeldPorts
from tritonembed_manager.server.process import ServerProcess
from tritonembed_manager.server.run_folder import RunFolder, new_region_prefix
from tritonembed_manager.server.settings import LOOPBACK, ServerSettings
from tritonembed_manager.server.signals import Interrupted, handled, ignore
from tritonembed_manager.server.tritonserver import Installation, command_and_environment

_DRAIN_S = 10.0
"""Never used: a candidate's server is killed, because no caller waits for its answers."""
_Result = TypeVar("_Result")


class CandidateFailedError(Exception):
    """The candidate has no figures. The message is the reason, in one line."""


@dataclass(frozen=True)
class ServerOptions:
    """The settings with which every candidate's server is started."""

    startup_timeout: float
    """Seconds until it is ready."""
    tritonserver: Path | None = None
    startup_limit: str = "--startup-timeout"
    """The option that sets the timeout."""


class CandidateServer:
    """A server that is ready."""

    def __init__(self, server: StartedServer, address: str) -> None:
        self._server = server
        self.target = address
        self.over = server.over
        """Done once the server broke."""

    def check(self) -> None:
        """Raise CandidateFailedError if it broke."""
        if self.over.done() and (error := self.over.exception()) is not None:
            raise CandidateFailedError(str(error))


@asynccontextmanager
async def candidate_server(
    repository: Path, options: ServerOptions, installation: Installation, run: RunFolder
) -> AsyncIterator[CandidateServer]:
    """Start a server and wait until an inference has succeeded. At the end nothing of the server is left.

    Raises CandidateFailedError if it does not become ready.
    """
    with closing(HeldPorts(LOOPBACK, FIRST_PORT, 3)) as held, tempfile.TemporaryDirectory(dir=run.path) as folder:
        settings = _settings(held.ports, options)
        command, environment = command_and_environment(
            installation, repository, settings, inherited_environment(), Path(folder)
        )

        def start() -> ServerProcess:
            prefix = new_region_prefix()
            return ServerProcess(command(prefix), environment, prefix, home=run.home(), keep_open=[run.lock])

        async with StartedServer(settings, start) as server:
            try:
                await server.until_ready()
            except ManagerError as error:
                raise CandidateFailedError(str(error)) from None
            yield CandidateServer(server, settings.local_address)


def _settings(ports: list[int], options: ServerOptions) -> ServerSettings:
    grpc, http, metrics = ports
    return ServerSettings(
        host=LOOPBACK,
        grpc_port=grpc,
        http_port=http,
        metrics_port=metrics,
        http_host=LOOPBACK,
        metrics_host=LOOPBACK,
        model_control_mode="none",
        tritonserver=options.tritonserver,
        mps=True,
        startup_timeout=options.startup_timeout,
        startup_limit=options.startup_limit,
        drain_timeout=_DRAIN_S,
        log_verbose=False,
        log_requests=False,
    )


def inherited_environment() -> dict[str, str]:
    """Our environment without options: they have been read, and TRITONEMBED_MODEL would win over model.json."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TRITONEMBED_")}


def run_interruptible(work: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a coroutine in an event loop. A stop signal cancels it, and once it has ended, Interrupted is raised.

    Main thread only.
    """
    return asyncio.run(_until_signal(work))


async def _until_signal(work: Coroutine[Any, Any, _Result]) -> _Result:
    task = asyncio.create_task(work)
    received: list[int] = []

    def stop(number: int) -> None:
        # Only once: a second signal must not interrupt the cleanup.
        if not received:
            task.cancel()
        received.append(number)

    loop = asyncio.get_running_loop()
    with handled(ignore) as signals:
        for number in signals:
            loop.add_signal_handler(number, stop, number)
        await asyncio.wait([task])
        for number in signals:
            loop.remove_signal_handler(number)
    error = None if task.cancelled() else task.exception()
    if received:
        raise Interrupted(signal.Signals(received[0]))
    if error is not None:
        raise error
    return task.result()
