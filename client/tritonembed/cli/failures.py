"""Failures of the command: each is one line on standard error and an exit code."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from tritonembed import TritonEmbedError


class CommandError(Exception):
    """The command fails with this message; ``exit_code`` 2 is bad usage, 1 everything else."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class UsageError(CommandError):
    """The command line is wrong."""

    def __init__(self, message: str) -> None:
        super().__init__(message, 2)


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn a file that cannot be opened, and a setting that the client refuses, into a UsageError."""
    try:
        yield
    except OSError as error:
        raise UsageError(os_message(error)) from error
    except ValueError as error:
        raise UsageError(str(error)) from error


@contextmanager
def failures() -> Iterator[None]:
    """Turn errors of the command's work into a CommandError."""
    try:
        yield
    except TritonEmbedError as error:
        raise CommandError(f"{type(error).__name__}: {error}") from error
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise  # the reader of the output is gone, which is not a failure
        raise CommandError(os_message(error)) from error


def os_message(error: OSError) -> str:
    """The error without its number."""
    reason = error.strerror or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename else reason
