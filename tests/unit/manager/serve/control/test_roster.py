"""How servers stand, from what checks and workers say."""

import numpy as np
import pytest

from tritonembed_manager.serve.control.probe import ProbeError
from tritonembed_manager.serve.control.roster import Roster
from tritonembed_manager.serve.model import ServerState

RNG = np.random.default_rng(5)
OURS = RNG.standard_normal((3, 16)).astype(np.float32)
OTHER = RNG.standard_normal((3, 16)).astype(np.float32)
GONE = ProbeError("connection refused")
STUB = "Stub process 'embedder_0_0' is not healthy"


class Desk:
    """A roster with a clock that stands still, and the changes it told of."""

    def __init__(self, **options):
        self.now = 0.0
        self.changes = 0
        self.roster = Roster(4, lambda: self.now, self._changed, **options)

    def _changed(self):
        self.changes += 1

    def add(self, *names, **options):
        members = [self.roster.add(name, f"{name}:1", **options) for name in names]
        return members if len(members) > 1 else members[0]


@pytest.fixture
def desk():
    return Desk()


def test_a_server_is_ready_once_it_gave_its_vectors_and_not_before(desk):
    server = desk.add("a")
    assert server.state is ServerState.STARTING
    desk.roster.answered(server, OURS)
    assert desk.roster.views()[0].state is ServerState.READY
    assert server.why == ""


def test_what_does_not_change_is_not_told(desk):
    server = desk.add("a")
    desk.roster.answered(server, OURS)
    before = desk.changes
    desk.roster.answered(server, OURS)
    assert desk.changes == before


def test_a_server_that_does_not_answer_is_out_with_the_reason_and_comes_back(desk):
    server = desk.add("a")
    desk.roster.answered(server, OURS)
    desk.roster.failed(server, GONE)
    assert (server.state, server.why, server.failures) == (ServerState.UNHEALTHY, "connection refused", 1)
    desk.roster.answered(server, OURS)
    assert (server.state, server.failures) == (ServerState.READY, 0)


def test_another_vector_than_when_it_joined_is_refused_until_it_is_the_old_one_again(desk):
    server = desk.add("a")
    desk.roster.answered(server, OURS)
    desk.roster.answered(server, OTHER)
    assert server.state is ServerState.REFUSED
    assert "when it joined" in server.why
    desk.roster.answered(server, OURS)
    assert server.state is ServerState.READY


def test_the_odd_one_is_refused_whatever_order_they_answer_in(desk):
    odd, one, two = desk.add("odd", "one", "two", awaited=True)
    for server, vectors in ((odd, OTHER), (one, OURS)):
        desk.roster.answered(server, vectors)
        assert server.state is ServerState.STARTING
    desk.roster.answered(two, OURS)
    assert [server.state for server in (odd, one, two)] == [ServerState.REFUSED, ServerState.READY, ServerState.READY]


@pytest.mark.parametrize("leaves", [True, False])
def test_those_that_do_not_answer_at_the_start_are_not_waited_for_again(desk, leaves):
    slow, quick = desk.add("slow", "quick", awaited=True)
    desk.roster.answered(quick, OURS)
    if leaves:
        desk.roster.remove("slow")
    else:
        desk.roster.failed(slow, GONE)
        assert slow.state is ServerState.UNHEALTHY
    assert quick.state is ServerState.READY


def test_when_all_of_one_kind_have_left_those_of_another_serve(desk):
    old = desk.add("old")
    desk.roster.answered(old, OURS)
    new = desk.add("new")
    desk.roster.answered(new, OTHER)
    assert new.state is ServerState.REFUSED
    desk.roster.remove("old")
    desk.roster.answered(new, OTHER)
    assert new.state is ServerState.READY


def test_a_dead_stub_takes_a_server_out_at_once_and_a_broken_connection_waits_for_the_check(desk):
    server = desk.add("a")
    desk.roster.answered(server, OURS)
    desk.roster.suspected(server, "connection reset")
    assert server.state is ServerState.READY
    desk.roster.suspected(server, STUB)
    assert (server.state, server.why) == (ServerState.UNHEALTHY, STUB)
    desk.roster.answered(server, OURS)
    assert server.state is ServerState.READY


def test_a_server_that_is_suspected_over_and_over_stays_out_longer_each_time(desk):
    server = desk.add("a")
    desk.roster.answered(server, OURS)
    waits = []
    for _ in range(4):
        desk.roster.suspected(server, STUB)
        began = desk.now
        while server.state is not ServerState.READY:
            desk.roster.answered(server, OURS)
            desk.now += 0.5 if server.state is not ServerState.READY else 0
        waits.append(desk.now - began)
    assert waits == [0, 1, 2, 4]


def test_a_launched_server_that_starts_is_not_unhealthy_yet(desk):
    server = desk.add("a", launched=True)
    desk.roster.failed(server, GONE)
    assert (server.state, server.why) == (ServerState.STARTING, "connection refused")


def test_why_a_process_is_gone_is_not_forgotten_while_it_does_not_answer(desk):
    server = desk.add("a", launched=True)
    desk.roster.down(server, ServerState.UNHEALTHY, "a stub died; starts again in 2 s")
    desk.roster.failed(server, GONE)
    assert server.why == "a stub died; starts again in 2 s"


@pytest.mark.parametrize("state", [ServerState.DRAINING, ServerState.FAILED])
def test_answers_of_a_server_that_leaves_or_stays_down_change_nothing(desk, state):
    server = desk.add("a")
    desk.roster.set_state(server, state, "for a reason")
    desk.roster.answered(server, OURS)
    desk.roster.failed(server, GONE)
    desk.roster.suspected(server, STUB)
    assert server.state is state


def test_a_new_life_has_a_new_generation(desk):
    server = desk.add("a", launched=True)
    desk.roster.down(server, ServerState.UNHEALTHY, "it died")
    assert (server.generation, server.state) == (1, ServerState.UNHEALTHY)


def test_slots_are_used_again_once_nothing_is_counted_there():
    busy = {0}
    desk = Desk(busy=lambda slot: slot in busy)
    first, second, third = desk.add("a", "b", "c")
    assert [server.slot for server in (first, second, third)] == [1, 2, 3]
    with pytest.raises(ValueError, match="no more than 4 servers"):
        desk.add("d")
    desk.roster.remove("b")
    assert desk.add("d").slot == 2
