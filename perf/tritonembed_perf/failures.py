"""The end of a benchmark: by a failure (one line and an exit code) or by a signal. Its servers are stopped."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from tritonembed_manager.tune.loadgen.load import LoadError


class BenchError(LoadError):
    """The benchmark failed; the message is for people. `exit_code` 1: it ran, and a result is wrong."""


class UsageError(BenchError):
    """The benchmark could not start, because of its options, the server or the model."""

    exit_code = 2


def end_interrupted() -> NoReturn:
    """End the command after Ctrl-C, once what was measured has been shown."""
    print("interrupted: what is above is all that was measured")
    raise KeyboardInterrupt


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """While entered, SIGTERM raises SystemExit with the shell's code for it, 143, as Ctrl-C raises its exception.

    Does nothing if SIGTERM is handled or ignored already, or outside the main thread, the only one that may set it.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM within the block take effect at its end: a half stopped server would outlive the benchmark.

    For the main thread; the block has to end by itself.
    """
    came: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        came.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def _exit(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)
