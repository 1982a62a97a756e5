"""The whole parent, attached to fake Tritons, with workers that only exchange lines with it."""

import asyncio
import dataclasses
import signal
import time

import pytest
from tests.fakes.triton import FakeTriton
from tests.unit.manager.router.settings import serve_settings

from tritonembed_manager.errors import ManagerError, StartError
from tritonembed_manager.router.control import servers
from tritonembed_manager.router.control.discovery import ServersFile, parse_servers
from tritonembed_manager.router.control.health import HealthSettings
from tritonembed_manager.router.control.settings import AttachSettings
from tritonembed_manager.router.control.supervisor import Supervisor
from tritonembed_manager.router.interfaces import ServerState, ServerView


class Case:
    """A supervisor as a task. `views` are the servers that it sent to the worker last."""

    def __init__(self, fake_workers, tmp_path, monkeypatch, attach, **settings):
        for name, value in fake_workers.environment.items():
            monkeypatch.setenv(name, value)
        self._workers = fake_workers
        health = HealthSettings(interval=0.05, timeout=5)
        self.settings = serve_settings(**{"attach": attach, "health": health, "drain_timeout": 5} | settings)
        self.supervisor = Supervisor(self.settings, [], tmp_path, worker_command=fake_workers.command)
        self.task = asyncio.create_task(self.supervisor.run())

    @property
    def views(self):
        lines = self._workers.received("servers")
        return {view["id"]: ServerView.from_json(view) for view in lines[-1]["servers"]} if lines else {}

    def states(self):
        return [view.state for view in self.views.values()]

    def stop(self, number=signal.SIGTERM):
        self.supervisor._stop_requested(number)

    async def ended(self):
        await asyncio.wait_for(self.task, 60)


@pytest.fixture
async def fakes():
    async with FakeTriton() as one, FakeTriton() as two, FakeTriton() as three:
        yield one, two, three


@pytest.fixture
async def serve(fake_workers, tmp_path, monkeypatch):
    cases = []

    def start(*given, **settings):
        attach = settings.pop("attach", None) or AttachSettings(
            servers=parse_servers([fake.address for fake in given], "--server")
        )
        cases.append(Case(fake_workers, tmp_path, monkeypatch, attach, **settings))
        return cases[-1]

    yield start
    for case in cases:
        case.task.cancel()
        await asyncio.gather(case.task, return_exceptions=True)


READY, OUT, REFUSED = ServerState.READY, ServerState.UNHEALTHY, ServerState.REFUSED


async def test_ready_is_printed_once_the_servers_and_the_workers_are(serve, fakes, eventually, capsys):
    case = serve(*fakes[:2])
    await eventually(lambda: case.states() == [READY, READY])
    printed = await eventually(lambda: capsys.readouterr().out)
    assert printed.startswith("READY grpc 0.0.0.0:50050 http 0.0.0.0:8080 ")
    case.stop()
    await case.ended()


async def test_a_server_that_crashes_is_unhealthy_until_it_answers_again(serve, fakes, eventually):
    case = serve(*fakes[:2])
    await eventually(lambda: case.states() == [READY, READY])
    await fakes[0].crash()
    await eventually(lambda: case.states() == [OUT, READY])
    await fakes[0].come_back()
    await eventually(lambda: case.states() == [READY, READY])


async def test_a_server_with_other_vectors_is_refused_at_the_start_and_later(serve, fakes, eventually):
    fakes[0].vector_sign = -1
    case = serve(*fakes)
    await eventually(lambda: case.states() == [REFUSED, READY, READY])
    assert "its vectors differ" in case.views[fakes[0].address].why
    fakes[0].vector_sign, fakes[1].dimensions = 1, 4
    await eventually(lambda: case.states() == [READY, REFUSED, READY])
    assert "4 dimensions instead of 8" in case.views[fakes[1].address].why


async def test_a_suspect_is_checked_at_once_and_cleared_if_it_is_healthy(serve, fakes, fake_workers, eventually):
    case = serve(*fakes[:2], health=HealthSettings(interval=3600, timeout=5))
    await eventually(lambda: case.states() == [READY, READY])
    suspect = {"type": "suspect", "server": fakes[0].address, "why": "connection reset"}
    case.supervisor._handle(0, suspect)
    await eventually(lambda: fake_workers.received("cleared"))
    assert case.states() == [READY, READY]
    fakes[0].unhealthy_after = 0
    case.supervisor._handle(0, suspect)
    await eventually(lambda: case.states() == [OUT, READY])


async def test_servers_join_and_leave_with_the_file(serve, fakes, eventually, tmp_path):
    path = tmp_path / "servers"
    path.write_text(f"{fakes[0].address}\n")
    case = serve(attach=AttachSettings(file=ServersFile(path)))
    await eventually(lambda: case.states() == [READY])
    path.write_text(f"{fakes[1].address}\n")
    await eventually(lambda: case.states() == [ServerState.DRAINING, READY])
    path.write_text(f"{fakes[0].address}\n{fakes[1].address}\n")
    await eventually(lambda: case.states() == [READY, READY])
    path.write_text(f"{fakes[1].address}\n")
    await eventually(lambda: list(case.views) == [fakes[1].address])


async def test_a_server_leaves_only_when_nothing_is_in_flight_there(serve, fakes, eventually, tmp_path, monkeypatch):
    monkeypatch.setattr(servers, "LEAST_LEAVE_S", 0.0)
    path = tmp_path / "servers"
    path.write_text(f"{fakes[0].address}\n{fakes[1].address}\n")
    case = serve(attach=AttachSettings(file=ServersFile(path)))
    await eventually(lambda: case.states() == [READY, READY])
    slot, table = case.views[fakes[0].address].slot, case.supervisor._table
    in_flight, looks = table.in_flight, []
    monkeypatch.setattr(table, "in_flight", lambda slot: looks.append(slot) or in_flight(slot))
    row = table.row(0)
    row.begin(slot, 10)
    path.write_text(f"{fakes[1].address}\n")
    await eventually(lambda: looks.count(slot) >= 3)
    assert list(case.supervisor._registry.upstreams) == [fake.address for fake in fakes[:2]]
    await eventually(lambda: case.states() == [ServerState.DRAINING, READY])
    row.end(slot, 10)
    await eventually(lambda: case.states() == [READY])


async def test_the_status_has_totals_servers_and_workers(serve, fakes, fake_workers, eventually):
    case = serve(*fakes[:2])
    await eventually(lambda: case.states() == [READY, READY])
    case.supervisor._handle(0, {"type": "stats", "requests": 3, "servers": {fakes[0].address: {"requests": 3}}})
    status = await eventually(
        lambda: next((line for line in fake_workers.received("status") if line["totals"]["requests"]), None)
    )
    assert status["totals"]["ready"] == 2
    assert status["servers"][0]["requests"] == 3
    assert status["workers"] == {"count": 1, "ready": 1, "restarts": 0}


async def test_lines_between_workers_are_passed_on_to_all(serve, fakes, fake_workers, eventually):
    case = serve(fakes[0])
    await eventually(lambda: case.states() == [READY])
    case.supervisor._handle(0, {"type": "abort", "request_id": "r", "asked": "k"})
    await eventually(lambda: fake_workers.received("abort"))


async def test_a_signal_drains_and_a_second_signal_forces(serve, fakes, fake_workers, eventually, capsys):
    case = serve(fakes[0])
    await eventually(lambda: capsys.readouterr().out)
    fake_workers.order("deaf")
    case.stop()
    # `timeout` and others send the signal twice: to the process and to its group.
    case.stop()
    await eventually(lambda: fake_workers.received("drain"))
    assert not case.task.done()
    case.stop(signal.SIGINT)
    with pytest.raises(ManagerError, match="SIGINT while stopping: killed"):
        await case.ended()


async def test_a_lame_duck_drains_after_its_time(serve, fakes, fake_workers, eventually, capsys):
    case = serve(fakes[0], lame_duck=1.0)
    await eventually(lambda: capsys.readouterr().out)
    began = time.monotonic()
    case.stop()
    await eventually(lambda: fake_workers.received("lame_duck"))
    assert not fake_workers.received("drain")
    status = await eventually(lambda: [line for line in fake_workers.received("status") if line["lame_duck"]])
    assert not status[0]["draining"]
    assert any("--lame-duck" in warning for warning in status[0]["warnings"])
    await case.ended()
    assert time.monotonic() - began >= 1.0
    assert fake_workers.received("drain")


async def test_a_second_signal_ends_a_lame_duck_and_a_third_signal_forces(
    serve, fakes, fake_workers, eventually, capsys
):
    case = serve(fakes[0], lame_duck=600.0)
    await eventually(lambda: capsys.readouterr().out)
    fake_workers.order("deaf")
    case.stop()
    await eventually(lambda: fake_workers.received("lame_duck"))
    case.stop(signal.SIGINT)
    await eventually(lambda: fake_workers.received("drain"))
    assert not case.task.done()
    case.stop(signal.SIGTERM)
    with pytest.raises(ManagerError, match="SIGTERM while stopping: killed"):
        await case.ended()


async def test_a_drain_that_takes_too_long_is_cut_off(serve, fakes, fake_workers, eventually, capsys):
    fake_workers.order("deaf")
    case = serve(fakes[0], drain_timeout=0.2)
    await eventually(lambda: capsys.readouterr().out)
    case.stop()
    with pytest.raises(ManagerError, match="did not finish within"):
        await case.ended()


@pytest.mark.parametrize(
    ("order", "why"),
    [
        ("cut", r"^4 requests did not finish within 5 s \(--drain-timeout\): cut$"),
        ("crash", r"^worker \d ended \(exit code 7\) before its requests in flight were finished$"),
    ],
)
async def test_a_drain_that_loses_requests_ends_with_the_reason(
    serve, fakes, fake_workers, eventually, capsys, order, why
):
    fake_workers.order(order)
    case = serve(fakes[0], workers=2)
    await eventually(lambda: capsys.readouterr().out)
    case.stop()
    with pytest.raises(ManagerError, match=why):
        await case.ended()


async def test_workers_have_their_part_of_the_time_to_drain(serve, fakes, fake_workers, eventually):
    serve(fakes[0], drain_timeout=30)
    [config] = await eventually(lambda: fake_workers.received("config"))
    assert (config["drain_timeout"], config["closing_timeout"]) == (27, 3)


async def test_a_signal_before_ready_abandons_the_start(serve, fakes, eventually):
    fakes[0].hang()
    case = serve(fakes[0])
    await fakes[0].wait_inside(1)
    case.stop()
    await case.ended()


async def test_a_start_that_takes_too_long_ends_with_the_reason(serve, fakes):
    fakes[0].loaded = False
    case = serve(fakes[0], startup_timeout=2.0)
    with pytest.raises(ManagerError, match="has no available versions"):
        await case.ended()


async def test_a_worker_that_cannot_listen_ends_the_start(serve, fakes, fake_workers):
    fake_workers.order("fail")
    with pytest.raises(StartError, match="--port: taken"):
        await serve(fakes[0]).ended()


def test_settings_need_servers_and_two_ports():
    settings = serve_settings(attach=AttachSettings())
    with pytest.raises(StartError, match="--port and --http-port are both 8080"):
        dataclasses.replace(settings, port=8080)
    with pytest.raises(StartError, match="--model is missing"):
        dataclasses.replace(settings, attach=None)
