"""A manager under systemd: it reports its start and its end, and signs of life in between."""

import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.fakes.threaded import fake_triton
from tests.integration.serve import serving

WATCHDOG_S = 0.2
LIMIT_S = 60


class Systemd:
    """The socket to which a service sends its notifications, and what arrived there, in order."""

    def __init__(self, path: Path) -> None:
        self.lines: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while arrived := self._socket.recv(4096):
            self.lines += arrived.decode().splitlines()

    def until(self, condition: Callable[[list[str]], bool]) -> None:
        """Wait until the lines meet the condition."""
        end = time.monotonic() + LIMIT_S
        while not condition(self.lines):
            assert time.monotonic() < end, self.lines
            time.sleep(0.02)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()


def test_systemd_gets_ready_signs_of_life_and_stopping(tmp_path: Path) -> None:
    systemd = Systemd(tmp_path / "notify")
    service = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": str(round(1e6 * WATCHDOG_S))}
    try:
        with fake_triton() as fake, serving("--model=m", f"--server={fake.address}", **service) as manager:
            systemd.until(lambda lines: "READY=1" in lines)
            assert manager.serves()
            seen = len(systemd.lines)
            systemd.until(lambda lines: lines[seen:].count("WATCHDOG=1") > 2)
            # A parent process that hangs gives no sign of life, so systemd would end it.
            manager.process.send_signal(signal.SIGSTOP)
            time.sleep(WATCHDOG_S)
            seen = len(systemd.lines)
            time.sleep(3 * WATCHDOG_S)
            hung = systemd.lines[seen:]
            manager.process.send_signal(signal.SIGCONT)
            assert hung == []
            assert "STOPPING=1" not in systemd.lines
            manager.process.send_signal(signal.SIGTERM)
            systemd.until(lambda lines: "STOPPING=1" in lines)
            assert manager.process.wait(LIMIT_S) == 0
    finally:
        systemd.close()
