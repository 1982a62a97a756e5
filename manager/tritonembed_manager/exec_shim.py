"""`python exec_shim.py PARENT_PID PROGRAM ARGUMENT…` becomes PROGRAM, which is told to end when its parent has died.

A program of its own rather than Popen's preexec_fn, which is not safe beside threads (gRPC starts some). Linux only.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Replace this process; exits with 1 when the parent is gone already."""
    parent, program = int(sys.argv[1]), sys.argv[2:]
    # SIGTERM, not SIGKILL: Triton then stops its stubs and removes its shared memory itself.
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(1)
    # Its log is a pipe to the parent: writing there after the parent died must not end the orderly stop half way.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        os.execv(program[0], program)
    except OSError as error:
        sys.exit(f"cannot start tritonserver: {error.strerror}")


if __name__ == "__main__":
    main()
