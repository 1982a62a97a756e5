"""Real processes: a server is started, and stopped with its children, also by Ctrl-C."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.unit.perf.fake_peer import TRIAL, FakeServer, FewTexts

from tritonembed_perf.compare.contest import Contest, SampleWindow
from tritonembed_perf.compare.launching import CannotRunError, launched
from tritonembed_perf.compare.peer import DEFAULTS, Bench
from tritonembed_perf.failures import deferred_signals
from tritonembed_perf.loadgen.protocols import OpenAIProtocol
from tritonembed_perf.server import free_ports


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, "float32", "cpu", 2, tmp_path)


def test_a_server_that_ends_is_reported_with_the_reason(bench: Bench, tmp_path: Path) -> None:
    with (
        pytest.raises(CannotRunError, match=r"ValueError: .* has no weights"),
        FakeServer(tmp_path / "server.py", "ends").running(bench, DEFAULTS),
    ):
        pass


def test_a_servers_children_end_with_it(bench: Bench, tmp_path: Path) -> None:
    peer = FakeServer(tmp_path / "server.py", "leaves a child", str(tmp_path / "pid"))
    with peer.running(bench, DEFAULTS):
        child = psutil.Process(int((tmp_path / "pid").read_text()))
        assert child.is_running()
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_server_that_has_to_be_killed_leaves_no_shared_memory(bench: Bench, tmp_path: Path) -> None:
    peer = FakeServer(tmp_path / "server.py", "leaves shared memory", str(tmp_path / "name"))
    with peer.running(bench, DEFAULTS):
        block = Path("/dev/shm") / (tmp_path / "name").read_text()
        assert block.exists()
    try:
        assert not block.exists()
    finally:
        block.unlink(missing_ok=True)


def test_a_servers_variables_reach_it(tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_text("import os, sys; sys.exit('error: ' + os.environ['A_SETTING'])")
    endpoint = OpenAIProtocol(f"http://127.0.0.1:{free_ports(1)[0]}", "fake")
    command = [sys.executable, str(script)]
    with (
        pytest.raises(CannotRunError, match="error: of ours"),
        launched(command, {"A_SETTING": "of ours"}, endpoint, tmp_path / "logs" / "log"),
    ):
        pass


def test_ctrl_c_in_the_middle_ends_the_server_and_keeps_the_results(bench: Bench, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    processes: list[psutil.Process] = []

    class Watched(FakeServer):
        @contextmanager
        def running(self, bench: Bench, config: str) -> Iterator[Any]:
            with super().running(bench, config) as endpoint:
                every = psutil.Process().children()
                processes.extend(process for process in every if "second.py" in " ".join(process.cmdline()))
                yield endpoint

    first, second = FakeServer(tmp_path / "first.py"), Watched(tmp_path / "second.py", "interrupts")
    contest = Contest(bench, [first, second], [TRIAL], SampleWindow(0.4, 0.1, 1), FewTexts(), lambda _: None)
    assert not contest.run(1)
    assert contest.results[0].samples
    assert not contest.results[1].samples
    assert processes
    assert not any(process.is_running() for process in processes)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_waits_until_a_peer_is_stopped() -> None:
    ended = []

    def stop() -> None:
        with deferred_signals():
            os.kill(os.getpid(), signal.SIGINT)
            ended.append("stopped")

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert ended
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
