"""`tritonembed-manager tune` on real tritonservers with a small model and little time."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tritonembed_manager.processes import family, process_table
from tritonembed_manager.repository import read_configs

LIMIT_S = 150


class Tune:
    """The command as a process, and what it started."""

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
        """What its servers left in /dev/shm: the names begin with the pid of the manager that started them."""
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


def test_it_measures_real_servers_and_writes_what_won(model, tmp_path):
    out = tmp_path / "models"
    # Time for two servers, and none to repeat or check: what is written is the defaults.
    options = ["--device=cpu", "--tokenizer-instances=1,2", "--replicas=1", "--max-batch-tokens=4096"]
    tune = Tune(out, f"--model={model}", *options, "--load=20x8@4", "--seconds=1", "--budget-minutes=1.8")
    code, said, err = tune.finish()
    assert code == 0, err
    rows = [line.split() for line in said.splitlines() if line.split()[0].isdigit()]
    assert rows[0][:5] == ["1", "2", "1", "4096", "20x8@4"]
    assert len(rows[0]) == 8
    record = json.loads((out / "tune.json").read_text())
    assert len(record["search"]) + len(record["check"]) == len(rows)
    assert all(len(attempt["runs"]["20x8@4"]) == 3 for attempt in record["search"])
    assert record["decision"].lower() in said.lower()
    configs = read_configs(out)
    assert set(configs) == {"tokenizer", "embedder", "embedding"}
    assert configs["tokenizer"].instance_group[0].count == record["written"]["tokenizer_instances"]
    assert "max_batch_tokens" not in json.loads((out / "model.json").read_text())["engine"]
    assert not tune.family()
    assert not tune.regions()


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
