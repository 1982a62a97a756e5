"""How a benchmark ends that can't go on: one line and an exit code."""

import contextlib
import sys
from collections.abc import Iterator

import typer


class BenchError(Exception):
    """The benchmark failed; the message is for people. `exit_code` 1: it ran and something is wrong."""

    exit_code = 1


class UsageError(BenchError):
    """It could not even start as asked: options, server, model."""

    exit_code = 2


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """A BenchError is one line on standard error, and the process ends with its exit code."""
    try:
        yield
    except BenchError as error:
        print(f"tritonembed-bench: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
