"""Stop signals while a command prepares: options, vLLM's parser, files. Afterwards a SignalPipe or asyncio has them."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tritonembed_manager.errors import ManagerError
from tritonembed_manager.signals import STOP_SIGNALS


class Interrupted(ManagerError):
    """A signal ended it; the exit code is the shell's for that signal."""

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(f"{received.name}: stopped; nothing was written")
        self.received = received
        self.exit_code = 128 + received


@contextmanager
def interruptible() -> Iterator[None]:
    """A stop signal raises Interrupted: what has been begun, a child or a folder, is cleaned up. Main thread only."""
    # What is ignored stays ignored: nohup, and a shell's background jobs.
    taken = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    old = {number: signal.signal(number, _interrupt) for number in taken}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextmanager
def abandonable_start() -> Iterator[None]:
    """For a command that a signal ends in any case: one that comes early abandons the start, and the exit code is 0."""
    try:
        with interruptible():
            yield
    except Interrupted as early:
        print(f"tritonembed-manager: {early.received.name}: start abandoned", file=sys.stderr, flush=True)


def _interrupt(number: int, _: FrameType | None) -> None:
    raise Interrupted(signal.Signals(number))
