"""Stop signals: an exception while a command prepares. Once it runs, asyncio handles them.

A command prepares while it reads options, asks vLLM's parser and writes files.
"""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from tritonembed_manager.errors import ManagerError

_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ECHO_S = 0.25


def stop_signals() -> list[signal.Signals]:
    """The stop signals to handle. An ignored signal stays ignored, as under nohup and in a shell's background jobs."""
    return [number for number in _STOP if signal.getsignal(number) is not signal.SIG_IGN]


class StopSignals:
    """The stop signals that a running command has received. Another signal of them forces its next step.

    `make`, `timeout` and some supervisors send a signal to the process and to its group: both count as one.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.received: list[signal.Signals] = []
        self._clock = clock
        self._last = 0.0

    def receive(self, number: int) -> bool:
        """Note a signal. Returns whether it counts."""
        before, self._last = self._last, self._clock()
        if self.received and self.received[-1] == number and self._last - before <= _ECHO_S:
            return False
        self.received.append(signal.Signals(number))
        return True


class Interrupted(ManagerError):
    """A stop signal ended the command. The exit code is the shell's for that signal."""

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(f"{received.name}: stopped; nothing was written")
        self.received = received
        self.exit_code = 128 + received


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise Interrupted on a stop signal, so that children and folders are cleaned up. Main thread only."""
    with handled(_interrupt):
        yield


@contextmanager
def uninterruptible() -> Iterator[None]:
    """Ignore stop signals, for a write that must be whole. Main thread only."""
    with handled(ignore):
        yield


@contextmanager
def abandonable_start() -> Iterator[None]:
    """For a command that runs until a signal: an early signal abandons the start, with exit code 0."""
    try:
        with interruptible():
            yield
    except Interrupted as early:
        print(f"tritonembed-manager: {early.received.name}: start abandoned", file=sys.stderr, flush=True)


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[list[signal.Signals]]:
    """Give the stop signals another handler, and the old one back at the end. Yields the signals. Main thread only."""
    old = {number: signal.signal(number, handler) for number in stop_signals()}
    try:
        yield list(old)
    finally:
        for number, before in old.items():
            signal.signal(number, before)


def _interrupt(number: int, _: FrameType | None) -> None:
    raise Interrupted(signal.Signals(number))


def ignore(_number: int, _frame: FrameType | None) -> None:
    """Do nothing. Unlike SIG_IGN, processes started meanwhile don't inherit it."""
