"""After SIGTERM, as after Ctrl-C, nothing that a benchmark started is left running."""

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

from tritonembed_perf.failures import exit_on_sigterm

# In place of the manager: prints READY and ends only on a signal.
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
from tritonembed_perf.server import {starts}
import signal
with {starts}("m"):
    signal.pause()
"""
LOAD = """
from tritonembed_manager.tune.loadgen.clients import run_closed_loop
from tritonembed_perf.server import running_server
if __name__ == "__main__":
    with running_server("m"):
        run_closed_loop("{target}", [b""], 2, processes=2, seconds=600)
"""


class Benchmark:
    """A script that runs with the manager above."""

    def __init__(self, folder: Path, script: str) -> None:
        package = folder / "tritonembed_manager"
        package.mkdir()
        # All modules except __main__ are the real package's.
        extended = "import pkgutil; __path__ = pkgutil.extend_path(__path__, __name__)"
        (package / "__init__.py").write_text(extended)
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
        """Sends SIGTERM once the manager has started, and checks the exit code. Returns the surviving children."""
        while not self.started.exists():
            assert self._process.poll() is None
            time.sleep(0.05)
        children = psutil.Process(self._process.pid).children(recursive=True)
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(60) == 128 + signal.SIGTERM
        return list(psutil.wait_procs(children, timeout=60)[1])


@pytest.mark.parametrize("starts", ["running_server", "running_manager"])
def test_a_terminated_benchmark_stops_its_server(starts: str, tmp_path: Path) -> None:
    benchmark = Benchmark(tmp_path, WITHIN.format(starts=starts))
    assert not benchmark.terminate()
    assert benchmark.stopped.exists()


def test_a_benchmark_ends_though_its_clients_wait_for_a_connection(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        benchmark = Benchmark(tmp_path, LOAD.format(target=f"127.0.0.1:{silent.getsockname()[1]}"))
        connections = [silent.accept()[0] for _ in range(2)]
        assert not benchmark.terminate()
        assert benchmark.stopped.exists()
        for connection in connections:
            connection.close()


def test_the_block_restores_the_handler_of_sigterm() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with exit_on_sigterm():
        with pytest.raises(SystemExit) as ended, exit_on_sigterm():
            os.kill(os.getpid(), signal.SIGTERM)
        assert ended.value.code == 143
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("taken", [signal.SIG_IGN, lambda *_: None])
def test_a_process_that_ignores_or_handles_sigterm_goes_on_doing_so(taken: signal.Handlers) -> None:
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
