"""Starting and ending the server of a candidate. A few lines of Python stand for tritonserver."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tritonembed_manager.server import foreground
from tritonembed_manager.server.machine import HeldPorts
from tritonembed_manager.server.probe import ProbeError
from tritonembed_manager.server.process import read_process
from tritonembed_manager.server.run_folder import RunFolder, run_folder
from tritonembed_manager.server.signals import Interrupted
from tritonembed_manager.server.tritonserver import Installation
from tritonembed_manager.tune import server
from tritonembed_manager.tune.server import CandidateFailedError, ServerOptions, candidate_server, run_interruptible

LISTEN = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(str(__import__('os').getpid()))\n"
READY = LISTEN + "time.sleep(60)"
SLOW = "import time; time.sleep(60)"
OUT_OF_MEMORY = "print('CUDA out of memory'); raise SystemExit(2)"
SILENT = "raise SystemExit(1)"
KILLED = "import os; os.kill(os.getpid(), 9)"
SHORT_LIVED = LISTEN + "time.sleep(1.5); print('the end', flush=True)"
# Ignores SIGTERM, and has a child in a session of its own.
STUBBORN = """
import signal, subprocess
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "60"], start_new_session=True)
"""


class Tritonserver:
    """What candidates start, and whether it answers: it does once its script has written its pid to a file."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.listening = folder / "listening"
        self.code = READY
        self.settings: list[Any] = []
        self.environments: list[dict[str, str]] = []
        tritonserver = self

        class Probe:
            def __init__(self, address: str) -> None:
                self.address = address

            async def infers(self, timeout: float) -> None:
                if not tritonserver.listening.exists() or not tritonserver.listening.read_text():
                    raise ProbeError("nothing listens there")

            async def close(self) -> None: ...

        def command_and_environment(
            _installation: object, _repository: Path, settings: object, environment: dict[str, str], _folder: Path
        ) -> tuple[Callable[[str], list[str]], dict[str, str]]:
            self.settings.append(settings)
            self.environments.append(environment)
            return lambda _: [sys.executable, "-I", "-c", self.code, str(self.listening)], environment

        monkeypatch.setattr(foreground, "GrpcProbe", lambda address, model: Probe(address))
        monkeypatch.setattr(server, "command_and_environment", command_and_environment)

    @property
    def pid(self) -> int:
        return int(self.listening.read_text())


@pytest.fixture
def tritonserver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tritonserver:
    return Tritonserver(tmp_path, monkeypatch)


def start(timeout: float = 20, then: Callable[[server.CandidateServer], Coroutine[Any, Any, Any]] | None = None) -> Any:
    """Start a candidate's server, wait for `then` of it, and end it."""

    async def trial(run: RunFolder) -> Any:
        installation = Installation(Path("tritonserver"), None)
        async with candidate_server(Path("models"), ServerOptions(timeout), installation, run) as running:
            return await then(running) if then else None

    with run_folder() as run:
        return run_interruptible(trial(run))


def lives(pid: int) -> bool:
    process = read_process(pid)
    return process is not None and process.alive


def test_it_is_ready_once_it_infers_and_gone_afterwards(tritonserver: Tritonserver) -> None:
    async def check(running: server.CandidateServer) -> int:
        running.check()
        assert lives(tritonserver.pid)
        return tritonserver.pid

    assert not lives(start(then=check))


@pytest.mark.parametrize(
    ("code", "reason"),
    [(OUT_OF_MEMORY, "CUDA out of memory"), (SILENT, "it logged nothing"), (KILLED, "signal 9")],
)
def test_a_server_that_does_not_start_is_a_failure_with_its_reason(
    tritonserver: Tritonserver, code: str, reason: str
) -> None:
    tritonserver.code = code
    with pytest.raises(CandidateFailedError, match=reason):
        start()


@pytest.mark.usefixtures("tritonserver")
def test_a_server_that_takes_too_long_is_a_failure(tritonserver: Tritonserver) -> None:
    tritonserver.code = SLOW
    with pytest.raises(CandidateFailedError, match=r"not ready after 0\.5 s \(--startup-timeout\)"):
        start(timeout=0.5)


def test_a_server_that_ends_under_load_is_noticed(tritonserver: Tritonserver) -> None:
    tritonserver.code = SHORT_LIVED

    async def check(running: server.CandidateServer) -> None:
        await asyncio.wait({running.over}, timeout=60)
        with pytest.raises(CandidateFailedError, match=r"tritonserver ended by itself \(exit code 0\): the end"):
            running.check()

    start(then=check)


def test_its_ports_are_on_loopback_and_held_from_before_it_listens(tritonserver: Tritonserver) -> None:
    async def others(_running: server.CandidateServer) -> list[int]:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", tritonserver.settings[0].grpc_port))
        held = HeldPorts("127.0.0.1", server.FIRST_PORT, 3)
        held.close()
        return held.ports

    found = start(then=others)
    settings = tritonserver.settings[0]
    assert {settings.host, settings.http_host, settings.metrics_host} == {"127.0.0.1"}
    assert not set(found) & set(settings.ports().values())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_signal_while_starting_ends_the_server(tritonserver: Tritonserver, number: signal.Signals) -> None:
    tritonserver.code = LISTEN + SLOW
    before = signal.signal(number, signal.SIG_DFL)
    tritonserver_listens = threading.Thread(target=_kill_self_once, args=(tritonserver.listening, number))
    tritonserver_listens.start()
    began = time.monotonic()

    async def forever(_running: server.CandidateServer) -> None:
        await asyncio.Event().wait()

    with pytest.raises(Interrupted) as caught:
        start(then=forever)
    tritonserver_listens.join()
    assert signal.signal(number, before) == signal.SIG_DFL
    assert caught.value.exit_code == 128 + number
    assert time.monotonic() - began < 30
    assert not lives(tritonserver.pid)


def _kill_self_once(file: Path, number: signal.Signals) -> None:
    while not file.exists() or not file.read_text():
        time.sleep(0.05)
    os.kill(os.getpid(), number)


def test_nothing_is_left_of_a_server_that_will_not_end(tritonserver: Tritonserver, tmp_path: Path) -> None:
    tritonserver.code = f"{STUBBORN}\nopen({str(tmp_path / 'child')!r}, 'w').write(str(child.pid))\n{READY}"

    async def pids(_running: server.CandidateServer) -> list[int]:
        return [tritonserver.pid, int((tmp_path / "child").read_text())]

    for pid in start(then=pids):
        assert not lives(pid)


def test_options_in_the_environment_do_not_reach_the_server(
    tritonserver: Tritonserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITONEMBED_MODEL", "another")
    monkeypatch.setenv("SOMETHING_ELSE", "1")
    start()
    [environment] = tritonserver.environments
    assert "TRITONEMBED_MODEL" not in environment
    assert environment["SOMETHING_ELSE"] == "1"


TRIAL = """
import sys, signal
sys.path[:0] = {path!r}
import pytest
from pathlib import Path
from tests.unit.manager.tune.test_server import Tritonserver, start
with pytest.MonkeyPatch.context() as patch:
    Tritonserver(Path({folder!r}), patch)
    async def forever(_):
        import asyncio
        await asyncio.Event().wait()
    start(then=forever)
"""


def test_the_server_ends_with_a_killed_parent(tmp_path: Path) -> None:
    script = TRIAL.format(path=sys.path, folder=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", script]) as parent:
        listening = tmp_path / "listening"
        while not listening.exists() or not listening.read_text():
            assert parent.poll() is None
            time.sleep(0.05)
        parent.kill()
    pid, end = int(listening.read_text()), time.monotonic() + 60
    while lives(pid):
        assert time.monotonic() < end
        time.sleep(0.05)
