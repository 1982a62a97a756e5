"""Stop signals while a command prepares, while it writes, and while it runs."""

import os
import signal

import pytest
from tests.fakes.clock import Clock

from tritonembed_manager.server.signals import Interrupted, StopSignals, interruptible, uninterruptible


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


def test_a_signal_counts_again_only_after_a_pause_and_another_signal_at_once() -> None:
    stops = StopSignals(clock := Clock())
    counted = []
    for number, pause in ((signal.SIGTERM, 0.0), (signal.SIGTERM, 0.2), (signal.SIGINT, 0.0), (signal.SIGINT, 0.3)):
        clock.advance(pause)
        counted.append(stops.receive(number))
    assert counted == [True, False, True, True]
    assert stops.received == [signal.SIGTERM, signal.SIGINT, signal.SIGINT]
