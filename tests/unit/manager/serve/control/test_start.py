"""When the manager calls itself ready, and when there is no use in waiting."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from tritonembed_manager.errors import ManagerError, StartError
from tritonembed_manager.serve.control.probe import ProbeError
from tritonembed_manager.serve.control.roster import Roster
from tritonembed_manager.serve.control.start import StartJudge
from tritonembed_manager.serve.model import ServerState

VECTORS = np.ones((3, 4), np.float32)


class Case:
    def __init__(self, launched=2):
        self.roster = Roster(4, lambda: 0.0, lambda: None)
        self.workers = SimpleNamespace(why_not=None, ready=True)
        self.servers = {}
        for index in range(launched):
            member = self.roster.add(f"server-{index}", f"h:{index}", launched=True)
            failed = asyncio.Event()
            self.servers[member.id] = SimpleNamespace(
                member=member, failed_first_start=failed, our_reason=None, first_failure=""
            )
        self.judge = StartJudge(self.roster, self.servers, self.workers)

    def answer(self, id):
        self.roster.answered(self.roster.members[id], VECTORS)

    def fail(self, id, why, ours=None):
        server = self.servers[id]
        server.failed_first_start.set()
        server.first_failure, server.our_reason = why, ours
        self.roster.down(server.member, ServerState.UNHEALTHY, why)


def test_every_server_has_to_be_ready_and_every_worker_to_listen():
    case = Case()
    case.answer("server-0")
    assert not case.judge.started()
    case.answer("server-1")
    assert case.judge.started()
    case.workers.ready = False
    assert not case.judge.started()
    assert case.judge.why() == "a worker does not listen yet"


def test_one_server_that_does_not_start_keeps_none_of_the_others_from_serving():
    case = Case()
    case.fail("server-1", "out of memory")
    assert not case.judge.started()
    case.answer("server-0")
    assert case.judge.started()


def test_a_reason_of_our_own_models_ends_the_start_with_exit_code_2():
    case = Case()
    case.fail("server-1", "the model has no tokenizer", ours="the model has no tokenizer")
    with pytest.raises(StartError, match="the model has no tokenizer"):
        case.judge.started()


def test_when_none_starts_it_is_over_with_exit_code_1():
    case = Case()
    case.fail("server-0", "out of memory")
    assert not case.judge.started()
    case.fail("server-1", "out of memory")
    with pytest.raises(ManagerError, match="out of memory") as caught:
        case.judge.started()
    assert caught.value.exit_code == 1


def test_attached_servers_are_waited_for_until_they_showed_how_they_stand():
    case = Case(launched=0)
    one, two = (case.roster.add(name, name) for name in ("a:1", "b:1"))
    case.roster.answered(one, VECTORS)
    assert not case.judge.started()
    case.roster.failed(two, ProbeError("connection refused"))
    assert case.judge.started()
    assert case.judge.why() == "b:1: connection refused"
