"""Which processes are watched as the python stubs of a server."""

import selectors
import subprocess
import sys

from tritonembed_manager.processes import Process
from tritonembed_manager.stubs import StubWatch
from tritonembed_manager.tritonserver import STUB


def stub_process(path="/models/embedder/1/model.py"):
    """Something that has a stub's arguments."""
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", path])


def test_what_a_stub_forks_is_not_taken_for_a_stub():
    """It has the stub's name until it calls exec; its end would look like the death of a model's process."""
    sleepers = [stub_process() for _ in range(2)]
    stub, forked = (sleeper.pid for sleeper in sleepers)
    watch = StubWatch(selectors.DefaultSelector())
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


def test_a_process_without_a_stubs_arguments_is_not_taken_for_a_stub():
    """In the middle of exec it has none yet, and when it ends none any more: its end is no reason to stop a server."""
    sleeper = subprocess.Popen(["sleep", "60"])
    watch = StubWatch(selectors.DefaultSelector())
    try:
        watch.look([Process(1, "tritonserver", "S", 0, 1, 0), Process(sleeper.pid, STUB[:15], "S", 1, 1, 0)])
        assert watch.watched == {}
    finally:
        watch.close()
        sleeper.kill()
        sleeper.wait()
