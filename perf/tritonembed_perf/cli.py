"""The command `tritonembed-bench`."""

import sys
from typing import Any

from tritonembed_perf.signals import exit_on_sigterm
from tritonembed_protocol.printable import printable

INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0, 1 for a failure, 2 for bad usage, 130 for Ctrl-C, 143 for SIGTERM.

    A missing package is one line that names what to install.
    """
    try:
        from tritonembed_perf.commands import app

        with exit_on_sigterm():
            code = app(arguments, standalone_mode=False, prog_name="tritonembed-bench")
    except KeyboardInterrupt:
        code = INTERRUPTED
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("tritonembed"):
            raise
        install = "pip install 'tritonembed[perf]', and to start servers what they run on"
        print(f"tritonembed-bench: {error.name} is not installed: {install}", file=sys.stderr)
        code = 2
    except Exception as error:
        # Typer's own errors have no public base class across its versions; this is their interface.
        known: Any = error
        if not hasattr(error, "format_message"):
            raise
        print(f"tritonembed-bench: {printable(' '.join(known.format_message().split()))}", file=sys.stderr)
        code = known.exit_code
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
