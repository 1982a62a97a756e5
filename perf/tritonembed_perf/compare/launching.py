"""A peer's server as a child process: started, waited for, stopped with everything it started."""

import asyncio
import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from tritonembed_manager.tune.loadgen.load import RequestFailedError
from tritonembed_perf.loadgen.protocol import WireProtocol, WrongAnswerError
from tritonembed_perf.signals import deferred_signals

START_LIMIT_S = 900.0
ATTEMPT_S = 30.0
PERIOD_S = 0.5
STOP_PATIENCE_S = 20.0
LINE_LENGTH = 160


class DidNotStartError(Exception):
    """The message is the last line that sounds like the reason."""


@contextmanager
def launched(
    command: Sequence[str], environment: Mapping[str, str], protocol: WireProtocol, log_path: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command until the end of the block, which begins once a text has been embedded.

    Raises DidNotStartError.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("wb") as log:
        # In a session of its own: Ctrl-C reaches the benchmark alone, which then stops it in order.
        process = subprocess.Popen(
            list(command),
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            _wait(process, protocol, log_path)
            yield process
        finally:
            with deferred_signals():
                _stop(process)


def _wait(process: "subprocess.Popen[bytes]", protocol: WireProtocol, log_path: Path) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while not asyncio.run(_answers(protocol)):
        if process.poll() is not None:
            raise DidNotStartError(_reason(log_path) or f"it ended with exit code {process.returncode}")
        if time.monotonic() > deadline:
            raise DidNotStartError(f"it did not answer within {START_LIMIT_S:.0f} s")
        time.sleep(PERIOD_S)


async def _answers(protocol: WireProtocol) -> bool:
    transport = protocol.sender().open(1, ATTEMPT_S)
    try:
        protocol.decode(await transport.send(protocol.encode(["ready?"]), 0), 1)
    except (RequestFailedError, WrongAnswerError):
        return False
    finally:
        await transport.close()
    return True


def _stop(process: "subprocess.Popen[bytes]") -> None:
    members = _members(process.pid)
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(STOP_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    # What it started may outlive it, and would slow whoever is measured next.
    _, alive = psutil.wait_procs(list({*members, *_members(process.pid)}), timeout=1)
    trackers = [member for member in alive if _is_resource_tracker(member)]
    _kill([member for member in alive if member not in trackers])
    # They remove the others' shared memory (vLLM's psm_* in /dev/shm: hundreds of MiB), once these have ended.
    _, alive = psutil.wait_procs(trackers, timeout=STOP_PATIENCE_S)
    _kill(alive)


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=STOP_PATIENCE_S)


def _is_resource_tracker(process: psutil.Process) -> bool:
    """Python's own for multiprocessing, or joblib's."""
    try:
        return any("resource_tracker import main" in argument for argument in process.cmdline())
    except psutil.Error:
        return False


def _members(leader: int) -> list[psutil.Process]:
    """What it started, also what has lost its parent since but stayed in its session."""
    found = set()
    with contextlib.suppress(psutil.NoSuchProcess):
        found.update(psutil.Process(leader).children(recursive=True))
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != leader and os.getsid(process.pid) == leader:
                found.add(process)
    return list(found)


def _reason(log_path: Path) -> str:
    lines = [line.strip() for line in log_path.read_text(errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if "Error" in line or "error:" in line]
    return (telling or lines or [""])[-1][-LINE_LENGTH:]
