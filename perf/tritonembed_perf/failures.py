"""How a benchmark that can't go on ends: one line and an exit code."""

import contextlib
import sys
from collections.abc import Iterator

import typer

from tritonembed_manager.tune.loadgen.load import LoadError

INTERRUPTED = 130


class BenchError(LoadError):
    """The benchmark failed; the message is for people. `exit_code` 1: it ran and something is wrong."""


class UsageError(BenchError):
    """It could not even start as asked: options, server, model."""

    exit_code = 2


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Print a BenchError, or the load generator's error, as one line, and end the command with its exit code."""
    try:
        yield
    except LoadError as error:
        print(f"tritonembed-bench: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None


def end_interrupted() -> None:
    """End the command after Ctrl-C, once what was measured has been shown."""
    print("interrupted: what is above is all that was measured")
    raise typer.Exit(INTERRUPTED)
