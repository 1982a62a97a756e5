"""A worker that only exchanges lines with its parent, and the lines it received."""

import json
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("fake_worker.py")


class FakeWorkers:
    """Fake workers: `command` and `environment` are arguments of WorkerPool."""

    def __init__(self, folder):
        self.journal = folder / "received"
        self.orders = folder / "received.do"
        self.environment = {"FAKE_WORKER": str(self.journal)}

    @staticmethod
    def command(control_fd, table_fd):
        return [sys.executable, "-I", str(SCRIPT), "--control-fd", str(control_fd), "--table-fd", str(table_fd)]

    def order(self, what):
        self.orders.write_text(what)

    def received(self, kind):
        """The received lines of this type, in order."""
        if not self.journal.exists():
            return []
        lines = [json.loads(text) for text in self.journal.read_text().splitlines(keepends=True) if text.endswith("\n")]
        return [line for line in lines if line["type"] == kind]


@pytest.fixture
def fake_workers(tmp_path):
    return FakeWorkers(tmp_path)


async def eventually(condition, limit=60.0):
    """Waits for another process. Returns the condition's value."""
    import asyncio

    end = time.monotonic() + limit
    while not (value := condition()):
        assert time.monotonic() < end, "it took too long"
        await asyncio.sleep(0.01)
    return value


@pytest.fixture(name="eventually")
def _eventually():
    return eventually
