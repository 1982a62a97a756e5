"""The states of servers, from checks and reports of workers."""

import numpy as np
import pytest

from tritonembed_manager.router.control.registry import UpstreamRegistry
from tritonembed_manager.router.control.status import Snapshots, Traffic
from tritonembed_manager.router.data.load_table import LoadTable
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.interfaces import ServerState
from tritonembed_manager.server.probe import ProbeError
from tritonembed_protocol.served import ServedModel

RNG = np.random.default_rng(5)
OURS = RNG.standard_normal((3, 16)).astype(np.float32)
OTHER = RNG.standard_normal((3, 16)).astype(np.float32)
GONE = ProbeError("connection refused")
STUB = "Stub process 'embedder_0_0' is not healthy"


class Desk:
    """A registry with a clock that stands still, and a count of its reported changes."""

    def __init__(self, **options):
        self.now = 0.0
        self.changes = 0
        self.registry = UpstreamRegistry(4, lambda: self.now, self._changed, **options)

    def _changed(self):
        self.changes += 1

    def add(self, *names, **options):
        upstreams = [self.registry.add(name, f"{name}:1", **options) for name in names]
        return upstreams if len(upstreams) > 1 else upstreams[0]


@pytest.fixture
def desk():
    return Desk()


def test_a_server_is_ready_only_after_its_first_successful_check(desk):
    server = desk.add("a")
    assert server.state is ServerState.STARTING
    desk.registry.answered(server, OURS)
    assert desk.registry.views()[0].state is ServerState.READY
    assert server.why == ""


def test_only_changes_are_reported(desk):
    server = desk.add("a")
    desk.registry.answered(server, OURS)
    before = desk.changes
    desk.registry.answered(server, OURS)
    assert desk.changes == before


def test_a_server_that_does_not_answer_is_unhealthy_with_the_reason_and_comes_back(desk):
    server = desk.add("a")
    desk.registry.answered(server, OURS)
    desk.registry.failed(server, GONE)
    assert (server.state, server.why, server.failures) == (ServerState.UNHEALTHY, "connection refused", 1)
    desk.registry.answered(server, OURS)
    assert (server.state, server.failures) == (ServerState.READY, 0)


def test_a_server_whose_vectors_change_is_refused_until_they_change_back(desk):
    server = desk.add("a")
    desk.registry.answered(server, OURS)
    desk.registry.answered(server, OTHER)
    assert server.state is ServerState.REFUSED
    assert "when it joined" in server.why
    desk.registry.answered(server, OURS)
    assert server.state is ServerState.READY


def test_the_odd_server_is_refused_whatever_order_they_answer_in(desk):
    odd, one, two = desk.add("odd", "one", "two", awaited=True)
    for server, vectors in ((odd, OTHER), (one, OURS)):
        desk.registry.answered(server, vectors)
        assert server.state is ServerState.STARTING
    desk.registry.answered(two, OURS)
    assert [server.state for server in (odd, one, two)] == [ServerState.REFUSED, ServerState.READY, ServerState.READY]


@pytest.mark.parametrize("leaves", [True, False])
def test_servers_that_do_not_answer_at_the_start_do_not_delay_the_others(desk, leaves):
    slow, quick = desk.add("slow", "quick", awaited=True)
    desk.registry.answered(quick, OURS)
    if leaves:
        desk.registry.remove("slow")
    else:
        desk.registry.failed(slow, GONE)
        assert slow.state is ServerState.UNHEALTHY
    assert quick.state is ServerState.READY


def test_servers_with_other_vectors_serve_after_all_old_servers_have_left(desk):
    old = desk.add("old")
    desk.registry.answered(old, OURS)
    new = desk.add("new")
    desk.registry.answered(new, OTHER)
    assert new.state is ServerState.REFUSED
    desk.registry.remove("old")
    desk.registry.answered(new, OTHER)
    assert new.state is ServerState.READY


def test_a_dead_stub_makes_a_server_unhealthy_at_once_and_a_broken_connection_only_after_a_check(desk):
    server = desk.add("a")
    desk.registry.answered(server, OURS)
    desk.registry.suspected(server, "connection reset")
    assert server.state is ServerState.READY
    desk.registry.suspected(server, STUB)
    assert (server.state, server.why) == (ServerState.UNHEALTHY, STUB)
    desk.registry.answered(server, OURS)
    assert server.state is ServerState.READY


def test_a_server_that_is_suspected_again_stays_unhealthy_longer_each_time(desk):
    server = desk.add("a")
    desk.registry.answered(server, OURS)
    waits = []
    for _ in range(4):
        desk.registry.suspected(server, STUB)
        began = desk.now
        while server.state is not ServerState.READY:
            desk.registry.answered(server, OURS)
            desk.now += 0.5 if server.state is not ServerState.READY else 0
        waits.append(desk.now - began)
    assert waits == [0, 1, 2, 4]


def test_a_launched_server_that_starts_is_not_unhealthy_yet(desk):
    server = desk.add("a", launched=True)
    desk.registry.failed(server, GONE)
    assert (server.state, server.why) == (ServerState.STARTING, "connection refused")


def test_failed_checks_do_not_replace_the_reason_of_a_dead_process(desk):
    server = desk.add("a", launched=True)
    desk.registry.down(server, ServerState.UNHEALTHY, "a stub died; starts again in 2 s")
    desk.registry.failed(server, GONE)
    assert server.why == "a stub died; starts again in 2 s"


@pytest.mark.parametrize("state", [ServerState.DRAINING, ServerState.FAILED])
def test_answers_of_a_server_that_leaves_or_stays_down_change_nothing(desk, state):
    server = desk.add("a")
    desk.registry.set_state(server, state, "for a reason")
    desk.registry.answered(server, OURS)
    desk.registry.failed(server, GONE)
    desk.registry.suspected(server, STUB)
    assert server.state is state


def test_a_new_life_has_a_new_generation(desk):
    server = desk.add("a", launched=True)
    desk.registry.down(server, ServerState.UNHEALTHY, "it died")
    assert (server.generation, server.state) == (1, ServerState.UNHEALTHY)


def test_slots_are_reused_once_they_have_no_load():
    busy = {0}
    desk = Desk(busy=lambda slot: slot in busy)
    first, second, third = desk.add("a", "b", "c")
    assert [server.slot for server in (first, second, third)] == [1, 2, 3]
    with pytest.raises(ValueError, match="no more than 4 servers"):
        desk.add("d")
    desk.registry.remove("b")
    assert desk.add("d").slot == 2


def test_deaths_of_ready_servers_are_counted():
    registry = UpstreamRegistry(4, lambda: 0.0, lambda: None)
    upstream = registry.add("a", "a:1")
    registry.set_state(upstream, ServerState.UNHEALTHY, "not checked yet")
    for state in (ServerState.UNHEALTHY, ServerState.STARTING, ServerState.FAILED):
        registry.set_state(upstream, ServerState.READY)
        registry.set_state(upstream, state, "it died")
        registry.set_state(upstream, state, "it died, as is known")
    for state in (ServerState.DRAINING, ServerState.REFUSED):
        registry.set_state(upstream, ServerState.READY)
        registry.set_state(upstream, state)
    assert upstream.view().deaths == 3


def test_the_status_has_the_reason_during_an_ejection():
    now = 10.0
    registry = UpstreamRegistry(4, lambda: now, lambda: None)
    upstream = registry.add("a", "a:1")
    registry.set_state(upstream, ServerState.READY)
    table = LoadTable.create(1)
    snapshots = Snapshots(
        registry, Traffic(lambda: now), table, names=ServedNames(("m",)), policy="random", clock=lambda: now
    )
    registry.ejected(upstream, "5 requests in a row failed", 5.0)

    def reason():
        return snapshots.take(draining=False, workers={})["servers"][0]["why"]

    assert reason() == "ejected: 5 requests in a row failed"
    now = 16.0
    assert reason() == ""
    table.close()


def test_vectors_are_compared_among_servers_of_the_same_model(desk):
    first = [desk.add(name, awaited=True) for name in ("a", "b")]
    second = [desk.add(f"bge@{name}", awaited=True, model=ServedModel("bge")) for name in ("a", "b")]
    for server in first:
        desk.registry.answered(server, OURS)
    desk.registry.answered(second[0], OTHER[:, :8])
    assert [view.state for view in desk.registry.views()] == [ServerState.STARTING] * 4
    desk.registry.answered(second[1], OTHER[:, :8])
    assert [view.state for view in desk.registry.views()] == [ServerState.READY] * 4
    assert [(view.ensemble, view.dimensions) for view in desk.registry.views()] == [
        ("embedding", 16),
        ("embedding", 16),
        ("bge", 8),
        ("bge", 8),
    ]
    desk.registry.answered(second[1], OURS[:, :8])
    assert second[1].state is ServerState.REFUSED
    assert first[1].state is ServerState.READY
