"""Stop signals while a command prepares and while it writes."""

import os
import signal

import pytest

from tritonembed_manager.server.signals import Interrupted, interruptible, uninterruptible


def test_a_stop_signal_ends_a_command_with_the_shells_exit_code() -> None:
    with pytest.raises(Interrupted) as caught, interruptible():
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.exit_code == 143


def test_a_write_that_must_be_whole_goes_on() -> None:
    with interruptible():
        with uninterruptible():
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
