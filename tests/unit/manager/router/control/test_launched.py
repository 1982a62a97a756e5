"""Launched servers are watched, ended and restarted. A script is in place of tritonserver."""

import asyncio
import os
import signal
import sys
import time

import numpy as np
import pytest

from tritonembed_manager.router.control.launched import LaunchedServer, LaunchSpec
from tritonembed_manager.router.control.registry import UpstreamRegistry
from tritonembed_manager.router.control.restarts import RestartLimits
from tritonembed_manager.router.interfaces import ServerState
from tritonembed_manager.server import life
from tritonembed_manager.server import machine as memory_kills
from tritonembed_manager.server.probe import ProbeError
from tritonembed_manager.server.process import ServerProcess, process_table

VECTORS = np.ones((3, 4), np.float32)
# Like tritonserver, the script has a stub under this name, which runs a model.
RUNS = """
import os, sys, time, pathlib
count = pathlib.Path({count!r})
count.write_text(count.read_text() + "x")
if {mode!r} == "exits":
    print('E0101 00:00:00.000000 1 model.cc:1] "failed to load: tritonembed: no such model"', flush=True)
    sys.exit(3)
if {mode!r} == "tells":
    print("tritonembed: embedder_0: starting: loading the weights", flush=True)
if os.fork() == 0:
    pathlib.Path("/proc/self/comm").write_text("triton_python_b")
    if {mode!r} == "one stub fails":
        time.sleep(2)
        print('E0101 00:00:00.000000 1 model.py:1] "tritonembed: no memory"', flush=True)
        sys.exit(1)
    time.sleep(600)
time.sleep(600)
"""


class Case:
    def __init__(self, tmp_path, mode="", limits=None):
        self.count = tmp_path / "starts"
        self.count.write_text("")
        script = RUNS.format(count=str(self.count), mode=mode)
        self.registry = UpstreamRegistry(4, lambda: 0.0, self._changed)
        self.states = []
        self.reasons = []
        self.pauses = []
        self.server = None
        self.upstream = self.registry.add("a", "a:1", launched=True)
        spec = LaunchSpec(
            command=lambda _: [sys.executable, "-I", "-c", script, "/models/embedder/1/model.py"],
            environment=os.environ,
            startup_timeout=20,
            limits=limits or RestartLimits(limit=5, window=600),
        )
        self.server = LaunchedServer(spec, self.registry, self.upstream, pause=self._pause)
        self.task = asyncio.create_task(self.server.run())

    def _changed(self):
        if self.server is not None:
            self.states.append(self.upstream.state)
            self.reasons.append(self.upstream.why)
            asyncio.get_running_loop().call_soon(self.server.upstream_changed)

    async def _pause(self, event, seconds):
        self.pauses.append(seconds)

    @property
    def starts(self):
        return len(self.count.read_text())

    async def ready(self, eventually, starts):
        await eventually(lambda: self.starts == starts and self.stub() and self.upstream.state is ServerState.STARTING)
        self.registry.answered(self.upstream, VECTORS)

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


async def test_a_stub_that_dies_ends_its_server_which_restarts_at_once(launch, eventually):
    case = launch()
    await case.ready(eventually, 1)
    await asyncio.sleep(0)
    stub = case.stub()
    os.kill(stub, signal.SIGKILL)
    await eventually(lambda: case.starts == 2)
    assert case.pauses == [0]
    assert case.states.index(ServerState.UNHEALTHY) > case.states.index(ServerState.READY)
    assert case.upstream.restarts == 1
    await case.ready(eventually, 2)
    assert case.upstream.state is ServerState.READY


async def test_a_killed_server_ends_its_stub_and_restarts(launch, eventually):
    case = launch()
    await case.ready(eventually, 1)
    await asyncio.sleep(0)
    stub = case.stub()
    os.kill(process_table()[stub].parent, signal.SIGKILL)
    await eventually(lambda: case.starts == 2)
    left = process_table().get(stub)
    assert left is None or not left.alive


async def test_a_server_that_fails_its_checks_is_restarted(launch, eventually):
    case = launch()
    await case.ready(eventually, 1)
    case.server.broken("3 checks in a row failed")
    await eventually(lambda: case.starts == 2)
    assert case.upstream.restarts == 1


async def test_after_too_many_failures_a_server_stays_down_with_the_reason(launch, eventually):
    case = launch(mode="exits", limits=RestartLimits(limit=2, window=100))
    await eventually(lambda: case.upstream.state is ServerState.FAILED)
    assert (case.starts, case.upstream.restarts, case.pauses) == (3, 2, [0, 1])
    assert case.upstream.state is ServerState.FAILED
    assert case.upstream.why == "it broke 3 times in 100 s and stays down: no such model"
    assert case.server.failed_first_start.is_set()
    assert case.server.our_reason == "no such model"
    case.server.terminate()
    await asyncio.wait_for(case.task, 60)
    assert case.starts == 3


async def test_a_replica_that_fails_while_others_load_ends_the_start_with_its_reason(launch, eventually, monkeypatch):
    monkeypatch.setattr(life, "_PATIENCE_WITH_A_FAILED_START_S", 0.1)
    case = launch(mode="one stub fails")
    await eventually(case.server.failed_first_start.is_set)
    assert case.server.our_reason == case.server.first_failure == "no memory"


async def test_a_death_explained_by_a_quarantined_request_is_forgiven(launch, eventually):
    case = launch(limits=RestartLimits(limit=0, window=100))
    await case.ready(eventually, 1)
    case.server.broken("it died")
    await eventually(lambda: case.upstream.state is ServerState.FAILED)
    case.server.forgive()
    await case.ready(eventually, 2)
    case.server.broken("it died again")
    # The server has not ended yet: workers are notified of a death at once.
    await eventually(lambda: case.upstream.state is ServerState.UNHEALTHY)
    case.server.forgive()
    await case.ready(eventually, 3)
    case.server.broken("it died of something else")
    await eventually(lambda: case.upstream.state is ServerState.FAILED)


async def test_a_terminated_server_ends_and_stays_down(launch, eventually):
    case = launch()
    await case.ready(eventually, 1)
    case.server.terminate()
    await asyncio.wait_for(case.task, 60)
    assert case.starts == 1
    assert case.stub() is None


async def test_a_server_whose_task_is_cancelled_while_it_ends_leaves_nothing(launch, eventually, monkeypatch):
    close = ServerProcess.close

    def slow_close(process):
        time.sleep(0.3)
        close(process)

    monkeypatch.setattr(ServerProcess, "close", slow_close)
    case = launch()
    await case.ready(eventually, 1)
    case.server.broken("a test")
    await eventually(lambda: case.upstream.state is ServerState.UNHEALTHY)
    case.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await case.task
    assert case.stub() is None


async def test_a_server_that_dies_during_the_managers_drain_stays_down(launch, eventually):
    case = launch()
    await case.ready(eventually, 1)
    await asyncio.sleep(0)
    case.server.retire()
    os.kill(case.stub(), signal.SIGKILL)
    await asyncio.wait_for(case.task, 60)
    assert case.starts == 1


async def test_a_stub_that_is_stopped_while_its_server_starts_is_ended_and_its_server_restarts(launch, eventually):
    case = launch()
    await eventually(lambda: case.starts == 1 and case.stub())
    # From then on, the stub has its arguments.
    await eventually(lambda: case.upstream.doing)
    began = time.monotonic()
    os.kill(case.stub(), signal.SIGSTOP)
    await eventually(lambda: case.starts == 2)
    # A start that does nothing is given up after a minute.
    assert time.monotonic() - began < 20
    assert case.states.count(ServerState.UNHEALTHY)
    assert case.server.first_failure.startswith("the python process of the model 'embedder' is stopped (SIGSTOP, pid ")
    # The first start has failed only when the second start fails too.
    assert not case.server.failed_first_start.is_set()
    os.kill(await eventually(case.stub), signal.SIGSTOP)
    await eventually(case.server.failed_first_start.is_set)


async def test_the_reason_of_a_starting_server_is_its_current_step(launch, eventually, caplog):
    case = launch(mode="tells")
    await eventually(lambda: case.upstream.why.startswith("loading the weights ("))
    case.registry.failed(case.upstream, ProbeError("no connection"))
    assert case.upstream.why.startswith("loading the weights (")
    case.registry.failed(case.upstream, ProbeError("a wrong answer", answered=True))
    assert case.upstream.why == "a wrong answer"
    await case.ready(eventually, 1)
    assert case.upstream.why == ""


@pytest.mark.parametrize("kills", [3, 4])
async def test_the_reason_names_a_stub_that_the_kernel_ended_for_lack_of_memory(
    launch, eventually, monkeypatch, tmp_path, kills
):
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("nr_free_pages 7\noom_kill 3\nother 1\n")
    monkeypatch.setattr(memory_kills, "VMSTAT", vmstat)
    case = launch()
    await case.ready(eventually, 1)
    await asyncio.sleep(0)
    vmstat.write_text(f"nr_free_pages 7\noom_kill {kills}\nother 1\n")
    os.kill(case.stub(), signal.SIGKILL)
    await eventually(lambda: case.starts == 2)
    why = next(why for why in case.reasons if "died (pid" in why)
    assert ("for lack of memory" in why) is (kills > 3)
