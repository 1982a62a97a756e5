"""When a silent worker is taken for a hung worker."""

import pytest

from tritonembed_manager.router.control.workers import TICK_S, Pulse
from tritonembed_manager.server.process import Process


class Case:
    """A worker with the given state and CPU time, and its parent's ticks."""

    def __init__(self, state="S", *, ready=True, ticks_each=0):
        self.state, self.cpu, self.each = state, 0, ticks_each
        self.pulse = Pulse(1, read=self._read)
        self.pulse.ready = ready

    def _read(self, pid):
        self.cpu += self.each
        return Process(pid, "python", self.state, 0, 1, 0, cpu_ticks=self.cpu)

    def ended_after(self, seconds, passed=TICK_S):
        """Seconds until the parent ends the worker, or None if that takes longer than `seconds`."""
        for tick in range(int(seconds / passed)):
            if self.pulse.tick(passed) is not None:
                return (tick + 1) * passed
        return None


@pytest.mark.parametrize("ready", [True, False])
def test_a_stopped_worker_is_ended_within_a_second_and_a_half(ready):
    assert Case("T", ready=ready).ended_after(10) <= 1.5


def test_a_worker_that_is_stopped_for_a_moment_is_left_alone():
    """Profilers do this. It does not matter when the worker sent its last line."""
    case = Case("S")
    for moment in range(40):
        case.state = "T" if moment % 4 >= 2 else "S"
        assert case.pulse.tick(TICK_S) is None
        if moment % 4 == 3:
            case.pulse.beat()


def test_an_idle_silent_worker_is_ended_within_two_and_a_half_seconds():
    assert Case("S").ended_after(10) <= 2.5


@pytest.mark.parametrize(("state", "each"), [("R", 0), ("D", 0), ("S", 1), ("R", 25)])
def test_a_worker_that_computes_or_waits_for_a_cpu_or_a_disk_is_busy(state, each):
    assert Case(state, ticks_each=each).ended_after(29) is None


def test_a_worker_that_stays_silent_is_ended_however_busy():
    assert 29 < Case("R", ticks_each=25).ended_after(60) < 32


@pytest.mark.parametrize("state", ["S", "D", "R"])
def test_a_starting_worker_may_be_silent_for_minutes(state):
    case = Case(state, ready=False)
    assert case.ended_after(240) is None
    assert case.ended_after(90) is not None


def test_a_worker_that_has_sent_its_last_line_may_end_silently():
    case = Case("S")
    case.pulse.closed = True
    assert case.ended_after(29) is None


@pytest.mark.parametrize("state", ["S", "T"])
def test_a_parent_that_was_stopped_itself_ends_no_worker(state):
    """The parent was stopped for an hour, or the machine slept. The workers' lines are read after that tick."""
    case = Case(state)
    assert case.pulse.tick(3600) is None
    case.pulse.beat()
    assert case.pulse.tick(TICK_S) is None


def test_a_line_now_and_then_is_enough():
    case = Case("S")
    for _ in range(100):
        assert case.pulse.tick(TICK_S) is None
        assert case.pulse.tick(TICK_S) is None
        case.pulse.beat()
