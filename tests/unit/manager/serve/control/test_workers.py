"""Worker processes: told, heard, started again, drained."""

import asyncio
import contextlib
import os
import signal
import sys

import pytest

from tritonembed_manager.serve.control.workers import WorkerPool
from tritonembed_manager.serve.load_table import LoadTable
from tritonembed_manager.serve.worker_config import WorkerConfig

CONFIG = WorkerConfig(
    index=0,
    workers=2,
    slots=4,
    host="127.0.0.1",
    port=1,
    http_port=2,
    model="m",
    policy="random",
    forward_timeout=1,
    drain_timeout=1,
    closing_timeout=1,
    max_in_flight=1,
    max_in_flight_per_server=1,
    log_format="text",
)


class Running:
    def __init__(self, fake):
        self.table = LoadTable.create(2, 4)
        self.heard = []
        self.servers = []
        self.gone = []
        self.pool = WorkerPool(
            CONFIG,
            self.table,
            first=lambda: [{"type": "servers", "servers": list(self.servers)}],
            hear=lambda index, line: self.heard.append((index, line)),
            gone=lambda index, pid: self.gone.append((index, pid)),
            command=fake.command,
            environment=os.environ | fake.environment,
        )
        self.task = asyncio.create_task(self.pool.run())


@pytest.fixture
async def running(fake_workers, eventually):
    case = Running(fake_workers)
    await eventually(lambda: case.pool.ready)
    yield case
    case.pool.kill()
    case.task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await case.task
    case.table.close()


async def test_each_worker_gets_its_config_and_then_the_servers(running, fake_workers, eventually):
    await eventually(lambda: len(fake_workers.heard("servers")) == 2)
    configs = [WorkerConfig.from_json(line) for line in fake_workers.heard("config")]
    assert sorted(config.index for config in configs) == [0, 1]
    assert {config.policy for config in configs} == {"random"}
    assert running.pool.figures() == {"count": 2, "ready": 2, "restarts": 0}


async def test_one_that_dies_is_replaced_and_its_row_is_zeroed(running, fake_workers, eventually):
    victim, other = running.pool.pids()
    for row in (0, 1):
        running.table.row(row).begin(0, 100)
    os.kill(victim, signal.SIGKILL)
    await eventually(lambda: running.pool.restarts == 1 and running.pool.ready)
    assert running.gone == [(0, victim)]
    assert running.table.work(0) == 100
    assert other in running.pool.pids()
    assert len(fake_workers.heard("servers")) >= 2


async def test_those_that_are_being_started_hear_what_changes_in_between(fake_workers, eventually):
    case = Running(fake_workers)
    while len(case.pool.pids()) < 2:
        await asyncio.sleep(0)
    # Here the processes run, and the sockets to them are not open yet.
    case.servers.append("new")
    case.pool.tell({"type": "servers", "servers": ["new"]})
    case.pool.drain()
    await asyncio.wait_for(case.task, 20)
    assert [line["servers"] for line in fake_workers.heard("servers")] == [["new"]] * 2
    assert len(fake_workers.heard("drain")) == 2
    case.table.close()


async def test_drained_they_end_and_are_not_replaced(running):
    running.pool.drain()
    await asyncio.wait_for(running.task, 20)
    assert running.pool.pids() == []
    assert running.pool.restarts == 0


async def test_one_that_is_deaf_to_the_drain_can_be_killed(running, fake_workers, eventually):
    fake_workers.order("deaf")
    running.pool.drain()
    await eventually(lambda: len(fake_workers.heard("drain")) == 2)
    assert not running.task.done()
    running.pool.kill()
    await asyncio.wait_for(running.task, 20)


async def test_one_that_cannot_listen_says_why(fake_workers, eventually):
    fake_workers.order("fail")
    case = Running(fake_workers)
    await eventually(lambda: case.pool.why_not)
    assert case.pool.why_not == "--port: taken"
    assert case.pool.news.is_set()
    case.pool.kill()
    await asyncio.wait_for(case.task, 20)


async def test_workers_that_never_come_to_listen_are_given_up(fake_workers, eventually, monkeypatch):
    monkeypatch.setattr(fake_workers, "command", lambda *_: [sys.executable, "-c", "raise SystemExit(7)"])
    case = Running(fake_workers)
    await eventually(lambda: case.pool.why_not)
    assert case.pool.why_not == "the manager's workers do not start (exit code 7)"
    case.pool.kill()
    await asyncio.wait_for(case.task, 20)
