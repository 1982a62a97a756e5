"""`tritonembed-manager tune` on real tritonservers with a small model and little time."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tritonembed_manager.server.process import family, process_table

LIMIT_S = 150


class Tune:
    """The command as a process, and its child processes."""

    def __init__(self, *arguments):
        command = [sys.executable, "-m", "tritonembed_manager", "tune", *map(str, arguments)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=os.environ)
        self.seen = []
        self.pids = set()

    def family(self):
        self.seen = family(self.process.pid, process_table(), self.seen)
        self.pids |= {process.pid for process in self.seen}
        return self.seen

    def regions(self):
        """Regions of its servers in /dev/shm. Their names begin with the pid of the manager that started them."""
        names = [path.name for path in Path("/dev/shm").iterdir()]
        return [name for name in names for pid in self.pids if name.startswith(f"tritonembed_{pid}_")]

    def until_a_stub_runs(self):
        end = time.monotonic() + LIMIT_S
        while not any(process.name.startswith("triton_python") for process in self.family()):
            assert time.monotonic() < end
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.05)

    def finish(self):
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            with contextlib.suppress(subprocess.TimeoutExpired):
                out, err = self.process.communicate(timeout=0.2)
                return self.process.returncode, out, err
            self.family()
        raise AssertionError("it did not end")


def test_ctrl_c_ends_every_process_and_writes_nothing(model, tmp_path):
    tune = Tune(tmp_path / "models", f"--model={model}", "--device=cpu")
    tune.until_a_stub_runs()
    tune.process.send_signal(signal.SIGINT)
    code, said, err = tune.finish()
    assert code == 130
    assert "tokens/s" in said
    assert err.splitlines()[-1] == "tritonembed-manager: SIGINT: stopped; nothing was written"
    assert not tune.family()
    assert not list(tmp_path.iterdir())
    assert not tune.regions()
