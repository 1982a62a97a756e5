"""The command `tritonembed-bench`, and how every program of this package ends."""

import sys
from collections.abc import Callable
from typing import Any

from tritonembed_manager.tune.loadgen.load import LoadError
from tritonembed_perf.failures import exit_on_sigterm
from tritonembed_protocol.printable import printable

INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    run_program("tritonembed-bench", _load_commands, arguments)


def _load_commands() -> Any:
    from tritonembed_perf.commands import app

    return app


def run_program(name: str, load: Callable[[], Any], arguments: list[str] | None = None) -> None:
    """Run a Typer app and exit: 0, 1 for a failure, 2 for bad usage, 130 for Ctrl-C, 143 for SIGTERM.

    load: returns the app. An error that is expected, such as a missing package, is one line.
    """

    def fail(message: str, code: int) -> int:
        print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
        return code

    try:
        with exit_on_sigterm():
            code = load()(arguments, standalone_mode=False, prog_name=name)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except LoadError as error:
        code = fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("tritonembed"):
            raise
        install = "pip install 'tritonembed[perf]', and to start servers what they run on"
        code = fail(f"{error.name} is not installed: {install}", 2)
    except Exception as error:
        # Typer's own errors have no public base class across its versions; this is their interface.
        known: Any = error
        if not hasattr(error, "format_message"):
            raise
        code = fail(printable(known.format_message()), known.exit_code)
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
