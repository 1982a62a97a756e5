"""SIGTERM leaves nothing running of what a benchmark started, as Ctrl-C leaves nothing."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from tritonembed_perf.termination import exit_on_sigterm

# In the place of the manager: says READY, and ends only when it is told to.
MANAGER = """
import os, pathlib, signal
try:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    pathlib.Path(os.environ["FAKE_STARTED"]).touch()
    print("READY grpc here", flush=True)
    signal.pause()
except KeyboardInterrupt:
    pathlib.Path(os.environ["FAKE_STOPPED"]).touch()
"""
WITHIN = """
from tritonembed_perf.{module} import {starts}
import signal
with {starts}("m"):
    signal.pause()
"""
LOAD = """
from tritonembed_perf.load import Load, run_load
from tritonembed_perf.server import running_server
if __name__ == "__main__":
    with running_server("m"):
        run_load(Load("{target}", [b""], 2, processes=2, seconds=600))
"""


class Benchmark:
    """A script that runs with that manager."""

    def __init__(self, folder: Path, script: str) -> None:
        package = folder / "tritonembed_manager"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(MANAGER)
        (folder / "script.py").write_text(script)
        self.started, self.stopped = folder / "started", folder / "stopped"
        self._process = subprocess.Popen(
            [sys.executable, folder / "script.py"],
            env=os.environ
            | {
                "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]),
                "FAKE_STARTED": str(self.started),
                "FAKE_STOPPED": str(self.stopped),
            },
        )

    def terminate(self) -> list[psutil.Process]:
        """SIGTERM once the manager has started; what is left of its children when it has ended with the right code."""
        while not self.started.exists():
            assert self._process.poll() is None
            time.sleep(0.05)
        children = psutil.Process(self._process.pid).children(recursive=True)
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(60) == 128 + signal.SIGTERM
        return list(psutil.wait_procs(children, timeout=10)[1])


@pytest.mark.parametrize(("module", "starts"), [("server", "running_server"), ("manager", "running_manager")])
def test_a_benchmark_that_is_terminated_stops_its_server(module: str, starts: str, tmp_path: Path) -> None:
    benchmark = Benchmark(tmp_path, WITHIN.format(module=module, starts=starts))
    assert not benchmark.terminate()
    assert benchmark.stopped.exists()


def test_clients_that_wait_for_a_connection_do_not_keep_it_from_ending(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        benchmark = Benchmark(tmp_path, LOAD.format(target=f"127.0.0.1:{silent.getsockname()[1]}"))
        connections = [silent.accept()[0] for _ in range(2)]
        assert not benchmark.terminate()
        assert benchmark.stopped.exists()
        for connection in connections:
            connection.close()


def test_outside_the_block_sigterm_is_what_it_was() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with exit_on_sigterm():
        with pytest.raises(SystemExit) as ended, exit_on_sigterm():
            os.kill(os.getpid(), signal.SIGTERM)
        assert ended.value.code == 143
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("taken", [signal.SIG_IGN, lambda *_: None])
def test_whoever_ignores_or_handles_sigterm_goes_on_doing_so(taken: signal.Handlers) -> None:
    before = signal.signal(signal.SIGTERM, taken)
    try:
        with exit_on_sigterm():
            assert signal.getsignal(signal.SIGTERM) is taken
    finally:
        signal.signal(signal.SIGTERM, before)


def test_another_thread_may_start_a_server_too() -> None:
    entered = threading.Event()

    def start() -> None:
        with exit_on_sigterm():
            entered.set()

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert entered.is_set()
