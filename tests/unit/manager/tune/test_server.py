"""Starting and ending the server of a candidate; a few lines of Python stand for `tritonembed-manager replica`."""

import os
import signal
import socket
import sys
import threading
import time

import pytest

from tritonembed_manager.interrupts import Interrupted
from tritonembed_manager.processes import read_process
from tritonembed_manager.signals import SignalPipe
from tritonembed_manager.tune import server
from tritonembed_manager.tune.child import Child
from tritonembed_manager.tune.server import CandidateFailedError, ServerOptions, candidate_server

READY = "print('READY grpc', flush=True); import time; time.sleep(60)"
OUT_OF_MEMORY = (
    "print('tritonembed-manager: starting'); print('tritonembed-manager: CUDA out of memory'); raise SystemExit(2)"
)
SILENT = "raise SystemExit(1)"
SLOW = "import time; time.sleep(60)"
# Ignores SIGTERM, and has a child in a session of its own.
STUBBORN = """
import signal, subprocess, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "60"], start_new_session=True)
print("child", child.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def signals():
    with SignalPipe() as pipe:
        yield pipe


@pytest.fixture
def replica(monkeypatch):
    """`replica(code, …)`: what the next servers run."""

    def use(*codes):
        turns = iter(codes)
        monkeypatch.setattr(server, "_command", lambda *_: (1, [sys.executable, "-c", next(turns)]))

    return use


def start(tmp_path, signals, timeout=20, tick=lambda: None):
    return candidate_server(tmp_path, ServerOptions(timeout), signals, tick)


def lives(pid):
    process = read_process(pid)
    return process is not None and process.alive


def test_it_is_ready_when_the_replica_says_so_and_gone_afterwards(replica, tmp_path, signals):
    replica(READY)
    ticks = []
    with start(tmp_path, signals, tick=lambda: ticks.append(1)) as running:
        running.check()
        pid = running._child.members()[0].pid
        assert lives(pid)
    assert not lives(pid)
    assert ticks


def test_a_server_that_does_not_start_says_why(replica, tmp_path, signals):
    replica(OUT_OF_MEMORY)
    with pytest.raises(CandidateFailedError, match="CUDA out of memory"), start(tmp_path, signals):
        pass


def test_a_server_that_says_nothing_is_a_failure_too(replica, tmp_path, signals):
    replica(SILENT)
    with pytest.raises(CandidateFailedError, match="without a word"), start(tmp_path, signals):
        pass


def test_a_server_that_takes_too_long_is_a_failure(replica, tmp_path, signals):
    replica(SLOW)
    with (
        pytest.raises(CandidateFailedError, match=r"not ready after 0\.5 s \(--startup-timeout\)"),
        start(tmp_path, signals, timeout=0.5),
    ):
        pass


def test_a_server_that_ends_under_load_is_noticed(replica, tmp_path, signals):
    replica("print('READY grpc', flush=True); print('tritonembed-manager: a python process died', flush=True)")
    with start(tmp_path, signals) as running:
        running._child._process.wait()
        with pytest.raises(CandidateFailedError, match="a python process died"):
            running.check()


def test_a_server_that_is_killed_is_a_failure_that_names_the_signal(replica, tmp_path, signals):
    replica("import os; print('tritonembed-manager: starting', flush=True); os.kill(os.getpid(), 9)")
    with pytest.raises(CandidateFailedError, match="ended by SIGKILL"), start(tmp_path, signals):
        pass


def test_a_port_taken_meanwhile_is_tried_again_on_others(replica, tmp_path, signals):
    taken = "print('tritonembed-manager: --port: port 4242 is taken; choose another'); raise SystemExit(2)"
    replica(taken, READY)
    with start(tmp_path, signals) as running:
        running.check()
    replica(taken, taken, taken)
    with pytest.raises(CandidateFailedError, match="port 4242 is taken"), start(tmp_path, signals):
        pass


def test_a_stop_signal_while_starting_ends_the_server(replica, tmp_path, signals):
    replica(SLOW)
    began = time.monotonic()
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(Interrupted) as caught, start(tmp_path, signals):
        pass
    assert caught.value.exit_code == 130
    assert time.monotonic() - began < 15


def test_nothing_is_left_of_a_child_that_will_not_end(monkeypatch):
    monkeypatch.setattr("tritonembed_manager.tune.child._PATIENCE_S", 0.5)
    with Child([sys.executable, "-c", STUBBORN]) as child:
        lines = []
        while not lines:
            lines = child.new_lines()
            time.sleep(0.02)
        grandchild = int(lines[0].split()[1])
        members = [process.pid for process in child.members()]
        assert grandchild in members
    for pid in members:
        while lives(pid):
            time.sleep(0.01)


def test_options_in_the_environment_do_not_reach_the_server(monkeypatch):
    monkeypatch.setenv("TRITONEMBED_MODEL", "another")
    monkeypatch.setenv("SOMETHING_ELSE", "1")
    environment = server._environment()
    assert "TRITONEMBED_MODEL" not in environment
    assert environment["SOMETHING_ELSE"] == "1"


def test_it_listens_on_loopback_alone_on_free_ports(tmp_path):
    port, command = server._command(tmp_path, ServerOptions(60, tmp_path / "tritonserver"))
    assert "--host=127.0.0.1" in command
    assert f"--port={port}" in command
    assert f"--tritonserver={tmp_path / 'tritonserver'}" in command
    socket.create_server(("127.0.0.1", port)).close()
