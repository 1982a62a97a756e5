"""Which processes are watched as the python stubs of a server."""

import selectors
import subprocess

from tritonembed_manager.processes import Process
from tritonembed_manager.stubs import StubWatch
from tritonembed_manager.tritonserver import STUB


def test_what_a_stub_forks_is_not_taken_for_a_stub():
    """It has the stub's name until it calls exec; its end would look like the death of a model's process."""
    sleepers = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
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
        assert set(watch.watched) == {stub}
    finally:
        watch.close()
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()
