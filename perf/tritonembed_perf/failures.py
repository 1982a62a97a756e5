"""How a benchmark that can't go on ends: one line and an exit code."""

from typing import NoReturn

from tritonembed_manager.tune.loadgen.load import LoadError


class BenchError(LoadError):
    """The benchmark failed; the message is for people. `exit_code` 1: it ran and something is wrong."""


class UsageError(BenchError):
    """It could not even start as asked: options, server, model."""

    exit_code = 2


def end_interrupted() -> NoReturn:
    """End the command after Ctrl-C, once what was measured has been shown."""
    print("interrupted: what is above is all that was measured")
    raise KeyboardInterrupt
