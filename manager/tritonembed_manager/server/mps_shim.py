"""`python mps_shim.py FOLDER DAEMON PROGRAM ARGUMENT…` becomes PROGRAM and starts an MPS daemon for it.

DAEMON: nvidia-cuda-mps-control, which ends when PROGRAM has ended. FOLDER: made anew, for its sockets and logs.
If the daemon doesn't start, or CUDA doesn't run through it, PROGRAM runs without it.

Like exec_shim.py, this is a program of its own. It makes the daemon a child of PROGRAM, so that the daemon always ends
with PROGRAM.
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
"""Makes a context on the first GPU. The first context makes the daemon start its server process."""


def main() -> None:
    """Replace this process."""
    folder, daemon, *program = sys.argv[1:]
    # A daemon refuses to start if a killed daemon has left its files there.
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
    """Start the daemon and return whether CUDA runs through it. If not, the daemon is killed."""
    environment = {**os.environ, **variables}
    # The daemon numbers GPUs within its CUDA_VISIBLE_DEVICES, and its clients again within theirs: only clients get it.
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
    """Let the kernel end the daemon when its parent, which becomes PROGRAM, dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    main()
