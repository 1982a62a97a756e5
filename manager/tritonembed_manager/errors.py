"""The errors that stop a command: each is one readable line and an exit code."""

import contextlib
import sys
from collections.abc import Iterator

import typer

EXIT_FAILED = 1
EXIT_BAD_START = 2


class ManagerError(Exception):
    """The manager stops with this line. `exit_code` is 2 if the caller can correct the cause before a start."""

    exit_code = EXIT_FAILED


class StartError(ManagerError):
    """An option, a model, a port or the machine is wrong, so that nothing is served. Exit code 2."""

    exit_code = EXIT_BAD_START


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Print a ManagerError as one line, and end the process with its exit code."""
    try:
        yield
    except ManagerError as error:
        # Imported only for an error, so that `--help` is quick.
        from tritonembed_protocol.printable import printable

        print(f"tritonembed-manager: {printable(str(error))}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
