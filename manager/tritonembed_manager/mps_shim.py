"""`python mps_shim.py FOLDER DAEMON PROGRAM ARGUMENT…` becomes PROGRAM, beside an MPS daemon of its own.

DAEMON: nvidia-cuda-mps-control, which ends when PROGRAM has ended. FOLDER: for its sockets and logs, made anew. Where
it doesn't start, or CUDA doesn't run through it, PROGRAM runs without it. A program of its own, like exec_shim.py, so
that the daemon is a child of PROGRAM and everything that ends the one ends the other.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

NULL = subprocess.DEVNULL
PR_SET_PDEATHSIG = 1
START_S = 5.0
PROBE_S = 30.0
PROBE = """
import ctypes
cuda, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p()
raise SystemExit(cuda.cuInit(0) or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0))
"""
"""A context on the first GPU: the daemon starts the process behind it for the first one."""


def main() -> None:
    """Replace this process."""
    folder, daemon, *program = sys.argv[1:]
    # A daemon refuses to start where one that was killed has left its files.
    shutil.rmtree(folder, ignore_errors=True)
    os.mkdir(folder)
    variables = dict.fromkeys(("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"), folder)
    if started(daemon, variables):
        os.environ |= variables
    else:
        print(
            "tritonembed: MPS does not start: replicas that share a GPU take turns on it", file=sys.stderr, flush=True
        )
    os.execv(program[0], program)


def started(daemon: str, variables: dict[str, str]) -> bool:
    """Whether CUDA runs through the daemon, which was started for that; otherwise it has ended again."""
    environment = {**os.environ, **variables}
    # It counts GPUs within its own CUDA_VISIBLE_DEVICES, and its clients within what it sees: let only theirs count.
    hidden = {name: value for name, value in environment.items() if name != "CUDA_VISIBLE_DEVICES"}
    try:
        process = subprocess.Popen([daemon, "-f"], env=hidden, stdin=NULL, stdout=NULL, stderr=NULL, preexec_fn=_mortal)
    except OSError:
        return False
    if _listens(process, Path(variables["CUDA_MPS_PIPE_DIRECTORY"], "control")) and _cuda_runs(environment):
        return True
    process.kill()
    process.wait()
    return False


def _listens(process: "subprocess.Popen[bytes]", socket: Path) -> bool:
    until = time.monotonic() + START_S
    while process.poll() is None and not socket.exists() and time.monotonic() < until:
        time.sleep(0.02)
    return process.poll() is None and socket.exists()


def _cuda_runs(environment: dict[str, str]) -> bool:
    command = [sys.executable, "-I", "-c", PROBE]
    try:
        return subprocess.run(command, env=environment, timeout=PROBE_S, stdout=NULL, stderr=NULL).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _mortal() -> None:
    """The daemon is told to end when its parent, which becomes PROGRAM, has died."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    main()
