"""A peer's server as a child process: started, awaited, and stopped with all of its processes."""

import asyncio
import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import psutil  # type: ignore[import-untyped]

from tritonembed_manager.tune.loadgen.load import RequestFailedError, Sender
from tritonembed_perf.failures import deferred_signals
from tritonembed_perf.loadgen.protocols import WrongAnswerError

START_LIMIT_S = 900.0
ATTEMPT_S = 30.0
PERIOD_S = 0.5
STOP_PATIENCE_S = 20.0
LINE_LENGTH = 160


class CannotRunError(Exception):
    """The reason why a peer has no figures, in one line for the table."""


class Questions(Protocol):
    """The part of a WireProtocol that finds out whether a server answers."""

    def sender(self) -> Sender:
        """How payloads reach the server."""

    def encode(self, texts: Sequence[str]) -> bytes:
        """A request's payload."""

    def decode(self, answer: bytes, sentences: int) -> Any:
        """Raises WrongAnswerError or RequestFailedError."""


@contextmanager
def launched(
    command: Sequence[str], environment: Mapping[str, str], protocol: Questions, log_path: Path
) -> Iterator[None]:
    """Run the command until the end of the block, which begins once a text has been embedded.

    Raises CannotRunError with the last line of its log that sounds like the reason.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("wb") as log:
        # A separate session: Ctrl-C reaches the benchmark alone, which then stops the server in order.
        process = subprocess.Popen(
            list(command),
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + START_LIMIT_S
            while not asyncio.run(_answers(protocol)):
                if process.poll() is not None:
                    reason = _reason(log_path) or f"it ended with exit code {process.returncode}"
                    raise CannotRunError(f"it does not start: {reason}")
                if time.monotonic() > deadline:
                    raise CannotRunError(f"it does not start: no answer within {START_LIMIT_S:.0f} s")
                time.sleep(PERIOD_S)
            yield
        finally:
            with deferred_signals():
                _stop(process)


async def _answers(protocol: Questions) -> bool:
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
    process.terminate()
    try:
        process.wait(STOP_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    # Its child processes may outlive it, and would slow the peer that is measured next.
    _, alive = psutil.wait_procs(members | _members(process.pid), timeout=1)
    trackers = {member for member in alive if _is_resource_tracker(member)}
    # They remove the others' shared memory (vLLM's psm_* in /dev/shm: hundreds of MiB), once these have ended.
    for group, patience in ((set(alive) - trackers, 0.0), (trackers, STOP_PATIENCE_S)):
        _, late = psutil.wait_procs(group, timeout=patience)
        for member in late:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(late, timeout=STOP_PATIENCE_S)


def _is_resource_tracker(process: psutil.Process) -> bool:
    """Python's own for multiprocessing, or joblib's."""
    try:
        return any("resource_tracker import main" in argument for argument in process.cmdline())
    except psutil.Error:
        return False


def _members(leader: int) -> set[psutil.Process]:
    """What it started, also what has lost its parent since but stayed in its session."""
    found = set()
    with contextlib.suppress(psutil.NoSuchProcess):
        found.update(psutil.Process(leader).children(recursive=True))
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != leader and os.getsid(process.pid) == leader:
                found.add(process)
    return found


def _reason(log_path: Path) -> str:
    lines = [line.strip() for line in log_path.read_text(errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if "Error" in line or "error:" in line]
    return (telling or lines or [""])[-1][-LINE_LENGTH:]
