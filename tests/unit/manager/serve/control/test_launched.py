"""Servers that are started here: watched, ended, started again. A script stands in for tritonserver."""

import asyncio
import os
import signal
import sys

import numpy as np
import pytest

from tritonembed_manager.processes import process_table
from tritonembed_manager.serve.control.launched import LaunchedServer, LaunchSpec
from tritonembed_manager.serve.control.restarts import RestartLimits
from tritonembed_manager.serve.control.roster import Roster
from tritonembed_manager.serve.model import ServerState

VECTORS = np.ones((3, 4), np.float32)
# Like the real one it has a stub under this name, which runs a model.
RUNS = """
import os, sys, time, pathlib
count = pathlib.Path({count!r})
count.write_text(count.read_text() + "x")
if {mode!r} == "exits":
    print('E0101 00:00:00.000000 1 model.cc:1] "failed to load: tritonembed: no such model"', flush=True)
    sys.exit(3)
if os.fork() == 0:
    pathlib.Path("/proc/self/comm").write_text("triton_python_b")
    time.sleep(600)
time.sleep(600)
"""


class Case:
    def __init__(self, tmp_path, mode="", limits=None):
        self.count = tmp_path / "starts"
        self.count.write_text("")
        script = RUNS.format(count=str(self.count), mode=mode)
        self.roster = Roster(4, lambda: 0.0, self._changed)
        self.states = []
        self.pauses = []
        self.server = None
        self.member = self.roster.add("a", "a:1", launched=True)
        spec = LaunchSpec(
            command=lambda _: [sys.executable, "-I", "-c", script, "/models/embedder/1/model.py"],
            environment=os.environ,
            startup_timeout=20,
            limits=limits or RestartLimits(),
        )
        self.server = LaunchedServer(spec, self.roster, self.member, pause=self._pause)
        self.task = asyncio.create_task(self.server.run())

    def _changed(self):
        if self.server is not None:
            self.states.append(self.member.state)
            asyncio.get_running_loop().call_soon(self.server.member_changed)

    async def _pause(self, event, seconds):
        self.pauses.append(seconds)

    @property
    def starts(self):
        return len(self.count.read_text())

    async def ready(self, eventually, starts):
        await eventually(lambda: self.starts == starts and self.stub() and self.member.state is ServerState.STARTING)
        self.roster.answered(self.member, VECTORS)

    def stub(self):
        found = [process for process in process_table().values() if process.name == "triton_python_b" and process.alive]
        mine = [process for process in found if process.session != os.getsid(0) and self._is_mine(process.session)]
        return mine[0].pid if mine else None

    def _is_mine(self, session):
        leader = process_table().get(session)
        return leader is not None and leader.parent == os.getpid()


@pytest.fixture
async def launch(tmp_path):
    cases = []

    def start(**options):
        cases.append(Case(tmp_path, **options))
        return cases[-1]

    yield start
    for case in cases:
        case.task.cancel()
        await asyncio.gather(case.task, return_exceptions=True)
        assert case.stub() is None


async def test_a_stub_that_dies_ends_its_server_which_starts_again_at_once(launch, eventually):
    case = launch()
    await case.ready(eventually, 1)
    await asyncio.sleep(0)
    stub = case.stub()
    os.kill(stub, signal.SIGKILL)
    await eventually(lambda: case.starts == 2)
    assert case.pauses == [0]
    assert case.states.index(ServerState.UNHEALTHY) > case.states.index(ServerState.READY)
    assert case.member.restarts == 1
    await case.ready(eventually, 2)
    assert case.member.state is ServerState.READY


async def test_a_server_that_is_killed_takes_its_stub_along_and_starts_again(launch, eventually):
    case = launch()
    await case.ready(eventually, 1)
    await asyncio.sleep(0)
    stub = case.stub()
    os.kill(process_table()[stub].parent, signal.SIGKILL)
    await eventually(lambda: case.starts == 2)
    left = process_table().get(stub)
    assert left is None or not left.alive


async def test_one_that_checks_find_useless_is_started_again(launch, eventually):
    case = launch()
    await case.ready(eventually, 1)
    case.server.broken("3 checks in a row failed")
    await eventually(lambda: case.starts == 2)
    assert case.member.restarts == 1


async def test_too_many_failures_leave_it_down_with_the_reason(launch):
    case = launch(mode="exits", limits=RestartLimits(limit=2, window=100))
    await asyncio.wait_for(case.task, 30)
    assert (case.starts, case.member.restarts, case.pauses) == (3, 2, [0, 1])
    assert case.member.state is ServerState.FAILED
    assert case.member.why == "it broke 3 times in 100 s and stays down: no such model"
    assert case.server.failed_first_start.is_set()
    assert case.server.our_reason == "no such model"


async def test_told_to_end_it_does_and_stays_down(launch, eventually):
    case = launch()
    await case.ready(eventually, 1)
    case.server.terminate()
    await asyncio.wait_for(case.task, 20)
    assert case.starts == 1
    assert case.stub() is None


async def test_while_the_manager_drains_a_server_that_dies_stays_down(launch, eventually):
    case = launch()
    await case.ready(eventually, 1)
    await asyncio.sleep(0)
    case.server.retire()
    os.kill(case.stub(), signal.SIGKILL)
    await asyncio.wait_for(case.task, 20)
    assert case.starts == 1
