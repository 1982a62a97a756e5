"""`replica` over a few lines of Python that stand for tritonserver: READY, drain, kill, and what breaks it."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tritonembed_manager.errors import ManagerError
from tritonembed_manager.server import foreground, signals
from tritonembed_manager.server.foreground import ForegroundServer
from tritonembed_manager.server.probe import ProbeError
from tritonembed_manager.server.process import ServerProcess
from tritonembed_manager.server.settings import ServerSettings

LISTENS = "import pathlib, signal, sys, time; pathlib.Path(sys.argv[1]).touch(); "
RUNS = LISTENS + "time.sleep(600)"
DRAINS = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); " + RUNS
STAYS = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + RUNS
ENDS = LISTENS + "time.sleep(1.5); print('the end', flush=True)"
FAILS = "print('CUDA out of memory'); raise SystemExit(2)"


class Replica:
    def __init__(self, folder: Path, code: str, refuses: str, **settings: object) -> None:
        self.listening = folder / "listening"
        self.code = code
        self.refuses = refuses
        defaults: dict[str, object] = {
            "host": "127.0.0.1",
            "grpc_port": 1,
            "http_port": 2,
            "metrics_port": 3,
            "http_host": "127.0.0.1",
            "metrics_host": "127.0.0.1",
            "model_control_mode": "none",
            "tritonserver": None,
            "mps": False,
            "startup_timeout": 30.0,
            "drain_timeout": 30.0,
            "log_verbose": False,
            "log_requests": False,
        }
        self._settings = ServerSettings(**{**defaults, **settings})  # type: ignore[arg-type]

    async def infers(self, _timeout: float) -> None:
        if not self.listening.exists():
            raise ProbeError("nothing listens there")
        if self.refuses:
            raise ProbeError(self.refuses, answered=True)

    async def close(self) -> None: ...

    def start(self) -> ServerProcess:
        self.process = ServerProcess(
            [sys.executable, "-I", "-c", self.code, str(self.listening)], os.environ, "tritonembed_test_"
        )
        return self.process

    async def run(self) -> None:
        await asyncio.wait_for(ForegroundServer(self._settings).run(self.start), 60)


@pytest.fixture
def replica(tmp_path, monkeypatch):
    def make(code: str, refuses: str = "", **settings: object) -> Replica:
        made = Replica(tmp_path, code, refuses, **settings)
        monkeypatch.setattr(foreground, "GrpcProbe", lambda _, model: made)
        return made

    yield make
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)


async def ready(capsys):
    end = time.monotonic() + 60
    while "READY grpc 127.0.0.1:1 http 127.0.0.1:2 metrics 127.0.0.1:3 in " not in capsys.readouterr().out:
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


async def test_a_stop_signal_drains_a_ready_server(replica, capsys):
    running = asyncio.create_task((one := replica(DRAINS)).run())
    await ready(capsys)
    os.kill(os.getpid(), signal.SIGTERM)
    await running
    assert "SIGTERM: finishing requests in flight" in capsys.readouterr().err
    assert not one.process.members()


async def test_a_signal_that_also_reaches_the_group_counts_once(replica, capsys, monkeypatch):
    monkeypatch.setattr(signals, "_ECHO_S", 60.0)
    running = asyncio.create_task((one := replica(STAYS)).run())
    await ready(capsys)
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        os.kill(os.getpid(), number)
        await asyncio.sleep(0.3)
    with pytest.raises(ManagerError, match="SIGINT while stopping: killed"):
        await running
    assert not one.process.members()


async def test_a_second_signal_kills_a_draining_server(replica, capsys):
    running = asyncio.create_task((one := replica(STAYS)).run())
    await ready(capsys)
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.sleep(0.3)
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(ManagerError, match="SIGINT while stopping: killed"):
        await running
    assert not one.process.members()


async def test_a_server_that_does_not_drain_in_time_is_killed(replica, capsys, monkeypatch):
    monkeypatch.setattr(foreground, "_GRACE_AFTER_DRAIN_S", 0.2)
    running = asyncio.create_task((one := replica(STAYS, drain_timeout=0.2)).run())
    await ready(capsys)
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(ManagerError, match=r"the server did not stop within 0\.2 s: killed"):
        await running
    assert not one.process.members()


async def test_a_stop_signal_abandons_a_start(replica, capsys):
    one = replica("import time; time.sleep(600)")
    running = asyncio.create_task(one.run())
    await asyncio.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    await running
    assert "SIGTERM: start abandoned" in capsys.readouterr().err
    assert not one.process.members()


@pytest.mark.parametrize(
    ("code", "refuses", "settings", "reason"),
    [
        (FAILS, "", {}, r"tritonserver did not start \(exit code 2\): CUDA out of memory \(--log-verbose shows more\)"),
        (ENDS, "", {}, r"tritonserver ended by itself \(exit code 0\): the end"),
        (RUNS, "no vector", {}, "the server started, but an inference fails: no vector"),
        (
            "import time; time.sleep(60)",
            "",
            {"startup_timeout": 0.5},
            r"not ready after 0\.5 s \(--startup-timeout\): it",
        ),
    ],
)
async def test_what_breaks_a_server_is_one_error(replica, code, refuses, settings, reason):
    one = replica(code, refuses, **settings)
    with pytest.raises(ManagerError, match=reason):
        await one.run()
    assert not one.process.members()
