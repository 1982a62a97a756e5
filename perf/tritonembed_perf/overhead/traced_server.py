"""A Triton server with traces on, for this measurement alone."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tritonembed_manager.errors import ManagerError
from tritonembed_manager.tritonserver import find_tritonserver
from tritonembed_perf.failures import UsageError
from tritonembed_perf.manager_process import ServerEndedError
from tritonembed_perf.server import RunningServer, running_server

TRACE_FILE = "trace.json"


@contextmanager
def traced_server(model: str, work: Path, arguments: Sequence[str]) -> Iterator[tuple[RunningServer, Path]]:
    """A replica that traces every request, and the folder where its traces lie once it has ended.

    work: an empty folder. arguments: more options of `tritonembed-manager replica`. Raises UsageError.
    """
    traces = work / "traces"
    traces.mkdir()
    try:
        program = _wrap(work, traces / TRACE_FILE)
        with running_server(model, [*arguments, "--tritonserver", str(program)]) as server:
            yield server, traces
    except (ManagerError, ServerEndedError) as error:
        raise UsageError(f"the server does not start: {error}") from None


def _wrap(work: Path, trace_file: Path) -> Path:
    """A program that is the tritonserver of this machine with traces on, laid out as an installation is."""
    found = find_tritonserver(None, work)
    (work / "bin").mkdir()
    program = work / "bin" / "tritonserver"
    variables = [f"export {name}={shlex.quote(value)}" for name, value in found.environment.items()]
    options = ["--trace-config=mode=triton", "--trace-config=level=TIMESTAMPS", "--trace-config=rate=1"]
    options.append(f"--trace-config=triton,file={trace_file}")
    command = shlex.join(["exec", str(found.binary), *options])
    program.write_text("\n".join(["#!/bin/sh", *variables, f'{command} "$@"', ""]))
    program.chmod(0o755)
    if found.backends is not None and not (work / "backends").exists():
        (work / "backends").symlink_to(found.backends)
    return program
