"""Worker processes: lines to and from them, restarts, drains."""

import asyncio
import contextlib
import os
import signal
import sys

import pytest

from tritonembed_manager.router.control.workers import WorkerPool
from tritonembed_manager.router.data.load_table import LoadTable
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.link import WorkerConfig

CONFIG = WorkerConfig(
    index=0,
    workers=2,
    slots=4,
    host="127.0.0.1",
    port=1,
    http_port=2,
    names=ServedNames(("m",)),
    policy="random",
    forward_timeout=1,
    drain_timeout=1,
    closing_timeout=1,
    max_in_flight=1,
    max_in_flight_per_server=1,
    log_format="text",
    http_header_timeout=1,
    receive_timeout=1,
    min_receive_rate=1,
    max_connections_per_peer=1,
    admin=False,
)


class Running:
    def __init__(self, fake):
        self.table = LoadTable.create(2, 4)
        self.received = []
        self.servers = []
        self.gone = []
        self.pool = WorkerPool(
            CONFIG,
            self.table,
            first=lambda: [{"type": "servers", "servers": list(self.servers)}],
            receive=lambda index, line: self.received.append((index, line)),
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
    await eventually(lambda: len(fake_workers.received("servers")) == 2)
    configs = [WorkerConfig.from_json(line) for line in fake_workers.received("config")]
    assert sorted(config.index for config in configs) == [0, 1]
    assert {config.policy for config in configs} == {"random"}
    assert running.pool.figures() == {"count": 2, "ready": 2, "restarts": 0}


async def test_a_worker_that_dies_is_replaced_and_its_row_is_zeroed(running, fake_workers, eventually):
    victim, other = running.pool.pids()
    for row in (0, 1):
        running.table.row(row).begin(0, 100)
    os.kill(victim, signal.SIGKILL)
    await eventually(lambda: running.pool.restarts == 1 and running.pool.ready)
    assert running.gone == [(0, victim)]
    assert running.table.work(0) == 100
    assert other in running.pool.pids()
    # A fake worker is ready before it has read the second line.
    await eventually(lambda: len(fake_workers.received("servers")) >= 2)


async def test_starting_workers_receive_the_changes_during_their_start(fake_workers, eventually):
    case = Running(fake_workers)
    while len(case.pool.pids()) < 2:
        await asyncio.sleep(0)
    # The processes run already, but the sockets to them are not open yet.
    case.servers.append("new")
    case.pool.send({"type": "servers", "servers": ["new"]})
    case.pool.be_lame_ducks()
    case.pool.drain()
    await asyncio.wait_for(case.task, 60)
    assert len(fake_workers.received("lame_duck")) == 2
    assert [line["servers"] for line in fake_workers.received("servers")] == [["new"]] * 2
    assert len(fake_workers.received("drain")) == 2
    case.table.close()


async def test_drained_workers_end_and_are_not_replaced(running):
    running.pool.drain()
    await asyncio.wait_for(running.task, 60)
    assert running.pool.pids() == []
    assert running.pool.restarts == 0


async def test_a_worker_that_ignores_the_drain_can_be_killed(running, fake_workers, eventually):
    fake_workers.order("deaf")
    running.pool.drain()
    await eventually(lambda: len(fake_workers.received("drain")) == 2)
    assert not running.task.done()
    running.pool.kill()
    await asyncio.wait_for(running.task, 60)


async def test_a_worker_that_cannot_listen_reports_the_reason(fake_workers, eventually):
    fake_workers.order("fail")
    case = Running(fake_workers)
    await eventually(lambda: case.pool.outage)
    assert case.pool.outage == "--port: taken"
    assert case.pool.news.is_set()
    case.pool.kill()
    await asyncio.wait_for(case.task, 60)


async def test_workers_that_never_listen_are_given_up(fake_workers, eventually, monkeypatch):
    monkeypatch.setattr(fake_workers, "command", lambda *_: [sys.executable, "-c", "raise SystemExit(7)"])
    case = Running(fake_workers)
    await eventually(lambda: case.pool.outage)
    assert case.pool.outage == "the manager's workers do not start (exit code 7)"
    case.pool.kill()
    await asyncio.wait_for(case.task, 60)


async def test_a_stopped_worker_is_replaced(running, eventually):
    """test_pulse.py has the times."""
    victim, other = running.pool.pids()
    os.kill(victim, signal.SIGSTOP)
    await eventually(lambda: victim not in running.pool.pids() and running.pool.ready)
    assert running.gone == [(0, victim)]
    assert other in running.pool.pids()


async def test_a_worker_that_hangs_is_replaced(running, fake_workers, eventually):
    """test_pulse.py has the times."""
    before = set(running.pool.pids())
    fake_workers.order("silent")
    await eventually(lambda: running.pool.restarts and running.pool.ready)
    assert len(before & set(running.pool.pids())) == 1


async def test_a_worker_that_is_stopped_while_it_starts_is_replaced(fake_workers, eventually):
    case = Running(fake_workers)
    await eventually(lambda: len(case.pool.pids()) == 2)
    victim = case.pool.pids()[0]
    os.kill(victim, signal.SIGSTOP)
    await eventually(lambda: victim not in case.pool.pids() and case.pool.ready)
    case.pool.kill()
    await asyncio.wait_for(case.task, 60)
    case.table.close()


async def test_a_silent_worker_that_computes_is_left_alone(running, fake_workers):
    fake_workers.order("compute")
    await asyncio.sleep(3)
    assert running.pool.restarts == 0
