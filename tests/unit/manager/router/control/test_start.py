"""When the manager reports READY, and when it gives up a start."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from tritonembed_manager.errors import ManagerError, StartError
from tritonembed_manager.router.control.registry import UpstreamRegistry
from tritonembed_manager.router.control.start import StartJudge
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.interfaces import ServerState
from tritonembed_manager.server.probe import ProbeError
from tritonembed_protocol.served import ServedModel

VECTORS = np.ones((3, 4), np.float32)


class Case:
    def __init__(self, launched=2):
        self.registry = UpstreamRegistry(4, lambda: 0.0, lambda: None)
        self.workers = SimpleNamespace(outage=None, ready=True)
        self.servers = {}
        for index in range(launched):
            upstream = self.registry.add(f"server-{index}", f"h:{index}", launched=True)
            failed = asyncio.Event()
            self.servers[upstream.id] = SimpleNamespace(
                upstream=upstream, failed_first_start=failed, our_reason=None, first_failure=""
            )
        self.judge = StartJudge(self.registry, self.servers, self.workers)

    def answer(self, id):
        self.registry.answered(self.registry.upstreams[id], VECTORS)

    def fail(self, id, why, ours=None):
        server = self.servers[id]
        server.failed_first_start.set()
        server.first_failure, server.our_reason = why, ours
        self.registry.down(server.upstream, ServerState.UNHEALTHY, why)


def test_every_server_has_to_be_ready_and_every_worker_to_listen():
    case = Case()
    case.answer("server-0")
    assert not case.judge.started()
    case.answer("server-1")
    assert case.judge.started()
    case.workers.ready = False
    assert not case.judge.started()
    assert case.judge.reason() == "a worker does not listen yet"


def test_the_others_serve_though_one_server_does_not_start():
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


def test_if_no_server_starts_the_start_ends_with_exit_code_1():
    case = Case()
    case.fail("server-0", "out of memory")
    assert not case.judge.started()
    case.fail("server-1", "out of memory")
    with pytest.raises(ManagerError, match="out of memory") as caught:
        case.judge.started()
    assert caught.value.exit_code == 1


def test_the_start_waits_for_the_first_check_of_every_attached_server():
    case = Case(launched=0)
    one, two = (case.registry.add(name, name) for name in ("a:1", "b:1"))
    case.registry.answered(one, VECTORS)
    assert not case.judge.started()
    case.registry.failed(two, ProbeError("connection refused"))
    assert case.judge.started()
    assert case.judge.reason() == "b:1: connection refused"


def test_every_model_needs_a_server_and_a_failed_one_is_named():
    case = Case()
    bge = ServedModel("bge")
    case.servers["server-1"].upstream.model = bge
    names = ServedNames(("minilm",), more=(ServedNames(("bge",), served=bge),))
    judge = StartJudge(case.registry, case.servers, case.workers, names=names)
    case.answer("server-0")
    assert not judge.started()
    assert judge.reason().startswith("server-1: ")
    case.fail("server-1", "out of memory")
    with pytest.raises(ManagerError, match=r"^bge: out of memory"):
        judge.started()
    case.answer("server-1")
    assert judge.started()
