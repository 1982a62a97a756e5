"""What a command says when it stops: one line and an exit code."""

import contextlib
import sys
from collections.abc import Iterator

import typer

from tritonembed_manager.errors import ManagerError


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """A ManagerError is printed as one line, and the process ends with its exit code."""
    try:
        yield
    except ManagerError as error:
        print(f"tritonembed-manager: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
