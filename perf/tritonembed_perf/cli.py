"""The command `tritonembed-bench`."""

import sys
from typing import Any

from tritonembed_manager.tune.loadgen.load import LoadError
from tritonembed_perf.signals import exit_on_sigterm
from tritonembed_protocol.printable import printable

INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0, 1 for a failure, 2 for bad usage, 130 for Ctrl-C, 143 for SIGTERM.

    An error that is expected, such as a missing package, is one line.
    """
    try:
        from tritonembed_perf.commands import app

        with exit_on_sigterm():
            code = app(arguments, standalone_mode=False, prog_name="tritonembed-bench")
    except KeyboardInterrupt:
        code = INTERRUPTED
    except LoadError as error:
        code = _fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("tritonembed"):
            raise
        install = "pip install 'tritonembed[perf]', and to start servers what they run on"
        code = _fail(f"{error.name} is not installed: {install}", 2)
    except Exception as error:
        # Typer's own errors have no public base class across its versions; this is their interface.
        known: Any = error
        if not hasattr(error, "format_message"):
            raise
        code = _fail(printable(known.format_message()), known.exit_code)
    sys.exit(code or 0)


def _fail(message: str, code: int) -> int:
    print(f"tritonembed-bench: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
