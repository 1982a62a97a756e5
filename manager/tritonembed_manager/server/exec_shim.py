"""`python exec_shim.py PARENT_PID PROGRAM ARGUMENT…` becomes PROGRAM and receives SIGTERM when its parent dies.

It replaces Popen's preexec_fn, which is unsafe in a process with threads, and gRPC starts threads. Linux only.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Replace this process. Exits with 1 if the parent has already ended."""
    parent, program = int(sys.argv[1]), sys.argv[2:]
    # SIGTERM, not SIGKILL: Triton then stops its stubs and removes its shared memory itself.
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(1)
    # The log is a pipe to the parent. A write after the parent's death must not interrupt the orderly stop.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        os.execv(program[0], program)
    except OSError as error:
        sys.exit(f"cannot start {os.path.basename(program[0])}: {error.strerror}")


if __name__ == "__main__":
    main()
