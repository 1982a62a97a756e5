"""The server of one candidate: `tritonembed-manager replica` on free loopback ports."""

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tritonembed_manager.signals import SignalPipe
from tritonembed_manager.tune.child import Child, wait

DRAIN_S = 10
HOST = "127.0.0.1"
STARTS = 3
"""A port that was free may be taken a moment later: then once more, on others."""
_SAID = "tritonembed-manager: "
_PORT_TAKEN = re.compile(r"port \d+ is taken|already in use")


class CandidateFailedError(Exception):
    """There are no figures for this candidate, and why, in one line."""


@dataclass(frozen=True)
class ServerOptions:
    """What every candidate's server is started with."""

    startup_timeout: float
    """Seconds until it is ready."""
    tritonserver: Path | None = None
    limited_by: str = "--startup-timeout"
    """The option that sets the timeout."""


class CandidateServer:
    """A server that is ready. Ended by the context manager that made it."""

    def __init__(self, child: Child, port: int, lines: list[str]) -> None:
        self._child = child
        self._lines = lines
        self.target = f"{HOST}:{port}"

    def check(self) -> None:
        """Raises CandidateFailedError when it has ended."""
        if self._child.exit_code is not None:
            raise CandidateFailedError(_reason(self._child, self._lines))


@contextmanager
def candidate_server(
    repository: Path, options: ServerOptions, signals: SignalPipe, tick: Callable[[], None]
) -> Iterator[CandidateServer]:
    """Start it and wait until an inference has succeeded; at the end nothing of it is left.

    tick: called several times a second while waiting.
    Raises CandidateFailedError when it does not become ready, Interrupted when a stop signal comes.
    """
    for start in range(1, STARTS + 1):
        port, command = _command(repository, options)
        with Child(command, _environment()) as child:
            lines: list[str] = []
            deadline = time.monotonic() + options.startup_timeout
            while not _is_ready(lines) and child.exit_code is None:
                wait(signals)
                tick()
                if time.monotonic() > deadline:
                    raise CandidateFailedError(
                        f"not ready after {options.startup_timeout:.3g} s ({options.limited_by})"
                    )
                lines += child.new_lines()
            if _is_ready(lines):
                # From now on what it starts is known, whichever of them ends first.
                child.members()
                yield CandidateServer(child, port, lines)
                return
            reason = _reason(child, lines)
        if start == STARTS or not _PORT_TAKEN.search(reason):
            raise CandidateFailedError(reason)


def _command(repository: Path, options: ServerOptions) -> tuple[int, list[str]]:
    from tritonembed_perf.server import free_ports

    grpc, http, metrics = free_ports(3)
    command = [sys.executable, "-m", "tritonembed_manager", "replica", f"--model-repository={repository}"]
    command += [f"--host={HOST}", f"--port={grpc}", f"--http-port={http}", f"--metrics-port={metrics}"]
    # Our own deadline is earlier; it is the one that is told.
    command += [f"--startup-timeout={options.startup_timeout + 60:g}", f"--drain-timeout={DRAIN_S}"]
    if options.tritonserver is not None:
        command.append(f"--tritonserver={options.tritonserver}")
    return grpc, command


def _environment() -> dict[str, str]:
    """Ours without the options in it: they have been read, and TRITONEMBED_MODEL would win over model.json."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TRITONEMBED_")}


def _is_ready(lines: list[str]) -> bool:
    return any(line.startswith("READY ") for line in lines)


def _reason(child: Child, lines: list[str]) -> str:
    """What the manager said last, once it has ended."""
    code = child.exit_code
    if code is not None and code < 0:
        return f"the server was ended by {signal.Signals(-code).name}"
    said = [line.removeprefix(_SAID) for line in [*lines, *child.new_lines()] if line.startswith(_SAID)]
    return said[-1] if said else "the server ended without a word"
