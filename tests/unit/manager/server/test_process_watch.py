"""The processes that are watched as python stubs of a server, and starts that hang."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tritonembed_manager.server.process import Process, read_process
from tritonembed_manager.server.process_watch import (
    IDLE_S,
    STOPPED_S,
    StartWatch,
    StubWatch,
    bytes_moved,
    waiting_for_locks,
)
from tritonembed_manager.server.tritonserver import STUB


class Start:
    """Processes of a start, changed by a test, and the watch, which looks at them once per second."""

    def __init__(self):
        self.processes = {
            1: Process(1, "tritonserver", "S", 0, 1, 0, cpu_ticks=100),
            2: Process(2, "triton_python_b", "S", 1, 1, 0, cpu_ticks=500),
        }
        self.moved = {}
        self.logged = 0
        self.waiting = set()
        self.watch = StartWatch(moved=lambda pid: self.moved.get(pid, 0), waiting=lambda: self.waiting)

    def is_now(self, pid, **changes):
        self.processes[pid] = Process(**{**vars(self.processes[pid]), **changes})

    def forks(self, pid):
        self.processes[pid] = Process(pid, "python3", "S", 1, 1, 0)

    def look(self, passed=1.0):
        members = self.processes.values()
        return self.watch.look(members, passed, logged=self.logged, models={2: "embedder"})

    def hangs_after(self, limit, each_second=lambda second: None):
        """Seconds until the start is given up, and the reason; None if it is not given up."""
        for second in range(limit):
            each_second(second)
            if (why := self.look()) is not None:
                return second, why
        return None


def test_a_stub_that_is_stopped_while_its_server_starts_is_noticed_within_five_seconds():
    start = Start()
    start.look()
    start.is_now(2, state="T")
    # The other processes keep running.
    second, why = start.hangs_after(100, lambda second: start.is_now(1, cpu_ticks=100 * second))
    assert second <= STOPPED_S < 5
    assert why == "the python process of the model 'embedder' is stopped (SIGSTOP, pid 2), so that the start hangs"


def test_a_stub_that_is_stopped_for_a_moment_is_left_alone():
    start = Start()
    for second in range(40):
        start.is_now(2, state="T" if second % 4 else "S")
        assert start.look() is None


def test_a_start_that_does_nothing_is_given_up_after_a_minute():
    # By measurement, an idle tritonserver uses a tick of CPU time in eight seconds.
    start = Start()
    second, why = start.hangs_after(1000, lambda second: start.is_now(1, cpu_ticks=100 + second // 8))
    assert IDLE_S - 1 <= second <= IDLE_S + 1
    assert why == "the start has made no progress for 60 s"


@pytest.mark.parametrize(
    "work",
    [
        lambda start, second: start.is_now(2, cpu_ticks=500 + second),
        lambda start, second: start.is_now(2, faults=second),
        lambda start, second: start.moved.update({2: second * 4096}),
        lambda start, second: setattr(start, "logged", second // 50),
        lambda start, second: start.is_now(2, state="D"),
        lambda start, second: start.is_now(2, state="t"),
        lambda start, second: start.waiting.add(2),
        lambda start, second: second % 50 or start.forks(3 + second),
    ],
    ids=["computes", "reads pages", "downloads", "logs", "waits for a disk", "is debugged", "waits its turn", "forks"],
)
def test_a_start_that_is_only_slow_or_waits_its_turn_is_left_alone(work):
    start = Start()
    assert start.hangs_after(600, lambda second: work(start, second)) is None


def test_a_start_that_hangs_after_it_waited_its_turn_is_given_up():
    start = Start()
    start.waiting.add(2)
    assert start.hangs_after(300) is None
    start.waiting.clear()
    assert start.hangs_after(300) is not None


def test_time_in_which_the_manager_itself_was_stopped_does_not_count():
    start = Start()
    start.look()
    start.is_now(2, state="T")
    assert start.look(passed=3600) is None
    start.is_now(2, state="S")
    for _ in range(20):
        assert start.look(passed=3600) is None


def test_a_process_that_waits_for_a_lock_is_found(tmp_path):
    """The engine's replicas that load on the same GPU wait like this."""
    lock = tmp_path / "lock"
    wait = f"import fcntl; fcntl.flock(open({str(lock)!r}, 'w'), fcntl.LOCK_EX)"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        child = subprocess.Popen([sys.executable, "-c", wait])
        try:
            end = time.monotonic() + 60
            while child.pid not in waiting_for_locks():
                assert time.monotonic() < end
            assert os.getpid() not in waiting_for_locks()
        finally:
            child.kill()
            child.wait()


def test_bytes_that_a_process_has_read_and_written_are_counted(tmp_path):
    before = bytes_moved(os.getpid())
    (tmp_path / "file").write_bytes(bytes(100_000))
    assert bytes_moved(os.getpid()) - before >= 100_000
    assert bytes_moved(2**30) == 0


def test_a_stopped_process_and_its_time_on_a_cpu_are_read():
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        end = time.monotonic() + 60
        while (read_process(child.pid)).cpu_ticks < 10:
            assert time.monotonic() < end
        os.kill(child.pid, signal.SIGSTOP)
        while not read_process(child.pid).stopped:
            assert time.monotonic() < end
    finally:
        child.kill()
        child.wait()


def stub_process(path="/models/embedder/1/model.py"):
    """A process with a stub's arguments. Returns after its exec, when it has them."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", path])
    while path.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
        time.sleep(0.01)
    return process


async def test_a_fork_of_a_stub_is_not_taken_for_a_stub():
    """Until it calls exec, a fork has the stub's name. Its end would look like the death of a model's process."""
    sleepers = [stub_process() for _ in range(2)]
    stub, forked = (sleeper.pid for sleeper in sleepers)
    watch = StubWatch(print)
    try:
        watch.look(
            [
                Process(1, "tritonserver", "S", 0, 1, 0),
                Process(stub, STUB[:15], "S", 1, 1, 0),
                Process(forked, STUB[:15], "S", stub, 1, 0),
            ]
        )
        assert watch.watched == {stub: "embedder"}
    finally:
        watch.close()
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()


async def test_a_process_without_a_stubs_arguments_is_not_taken_for_a_stub():
    """A process has no arguments during exec and while it ends. Its end is no reason to stop a server."""
    sleeper = subprocess.Popen(["sleep", "60"])
    watch = StubWatch(print)
    try:
        watch.look([Process(1, "tritonserver", "S", 0, 1, 0), Process(sleeper.pid, STUB[:15], "S", 1, 1, 0)])
        assert watch.watched == {}
    finally:
        watch.close()
        sleeper.kill()
        sleeper.wait()


async def test_a_child_that_ended_before_it_became_a_stub_is_noticed_at_the_second_look():
    watch = StubWatch(print)
    shell, other = Process(7, "bash", "Z", 1, 1, 0), Process(8, "nvidia-smi", "Z", 1, 1, 0)
    assert not watch.never_ran([shell, other])
    assert watch.never_ran([shell, other])
    assert not watch.never_ran([other])
    assert not watch.never_ran([Process(9, "bash", "Z", 1, 1, 0)])


async def test_the_end_of_a_stub_that_ran_does_not_count_as_one_that_never_ran():
    sleeper = stub_process()
    watch = StubWatch(print)
    try:
        while not watch.watched:
            watch.look([Process(sleeper.pid, STUB[:15], "S", 1, 1, 0)])
        ended = Process(sleeper.pid, STUB[:15], "Z", 1, 1, 0)
        assert not any(watch.never_ran([ended]) for _ in range(3))
    finally:
        watch.close()
        sleeper.kill()
        sleeper.wait()
