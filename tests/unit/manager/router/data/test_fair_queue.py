"""The policy of the queue in front of the servers, against a server whose clock is its work."""

import pytest

from tritonembed_manager.router.data.fair_queue import FIRST, SECOND, FairQueue, Waiting
from tritonembed_manager.router.interfaces import Caller

PART = 100
FLOOD, OTHER = Caller("flood"), Caller("other")


def request(caller, work, priority=SECOND, small=False):
    return Waiting(caller, priority, work, small, lambda _server, most: most)


class Server:
    """Computes one part after the other. now: work done so far, which is the time."""

    def __init__(self):
        self.queue = FairQueue()
        self.now = 0
        self.served = {}
        self.order = []

    def add(self, *args, **options):
        added = request(*args, **options)
        self.queue.add(added)
        return added

    def step(self):
        waiting = self.queue.next(PART)
        work = min(PART, waiting.work)
        self.queue.took(waiting, work)
        self.now += work
        self.served[waiting.caller.name] = self.served.get(waiting.caller.name, 0) + work
        self.order.append(waiting)
        return waiting

    def run(self, work):
        end = self.now + work
        while self.queue and self.now < end:
            self.step()

    def time_of(self, waiting):
        """The time until the request is done."""
        came = self.now
        while not waiting.gone:
            self.step()
        return self.now - came


@pytest.fixture
def server():
    return Server()


def test_a_single_sentence_waits_for_one_part_however_much_another_caller_sent(server):
    for _ in range(8):
        server.add(FLOOD, 10_000)
    for _ in range(50):
        server.run(337)
        assert server.time_of(server.add(OTHER, 5, small=True)) <= PART + 5


def test_two_callers_share_equally_whatever_the_number_of_their_requests(server):
    for _ in range(8):
        server.add(FLOOD, 10_000)
    server.add(OTHER, 10_000)
    server.run(10_000)
    assert abs(server.served["flood"] - server.served["other"]) <= PART


def test_weights_divide_the_work(server):
    server.add(Caller("one", 1.0), 100_000)
    server.add(Caller("three", 3.0), 100_000)
    server.run(40_000)
    assert server.served["three"] == pytest.approx(3 * server.served["one"], abs=4 * PART)


def test_a_caller_that_was_idle_has_saved_nothing_up(server):
    server.add(FLOOD, 100_000)
    server.run(50_000)
    server.add(OTHER, 100_000)
    server.served.clear()
    server.run(10_000)
    assert server.served["other"] <= 5_000 + PART


def test_a_caller_that_comes_back_has_saved_nothing_up(server):
    server.add(FLOOD, 100_000)
    server.add(OTHER, 100)
    server.run(50_000)
    server.add(OTHER, 100_000)
    server.served.clear()
    server.run(10_000)
    assert server.served["other"] <= 5_000 + PART


def test_one_callers_requests_of_a_kind_keep_their_order(server):
    added = [server.add(FLOOD, 250) for _ in range(4)]
    server.run(1_000)
    assert [added.index(waiting) for waiting in server.order] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3


def test_a_callers_own_small_requests_pass_its_large_ones_for_half_of_the_work(server):
    server.add(FLOOD, 100_000)
    assert server.time_of(server.add(FLOOD, 5, small=True)) == 5
    large = small = 0
    while server.now < 20_000:
        server.add(FLOOD, PART, small=True)
        if server.step().is_small:
            small += PART
        else:
            large += PART
    assert large >= 0.45 * (large + small)
    assert small >= 0.45 * (large + small)


def test_priority_1_goes_ahead_of_priority_2(server):
    for _ in range(8):
        server.add(FLOOD, 1_000)
    first = server.add(FLOOD, 600, FIRST)
    assert server.time_of(first) == 600


def test_priority_2_has_one_part_in_eight_while_priority_1_never_ends(server):
    server.add(FLOOD, 100_000, FIRST)
    server.add(OTHER, 100_000, SECOND)
    server.run(16_000)
    assert server.served["other"] == pytest.approx(2_000, abs=2 * PART)


def test_what_is_given_up_is_skipped(server):
    first, second, third = (server.add(FLOOD, 100) for _ in range(3))
    server.queue.remove(first)
    server.queue.remove(first)
    assert len(server.queue) == 2
    assert server.step() is second
    server.queue.remove(third)
    assert not server.queue
    assert server.queue.next(PART) is None
    assert server.queue.all() == []


def test_small_requests_that_pass_the_queue_are_charged(server):
    server.add(FLOOD, 100_000)
    queue = server.queue
    assert not queue.has_share_left(FLOOD, SECOND, PART)
    passed = 0
    for _ in range(100):
        while queue.has_share_left(OTHER, SECOND, PART):
            queue.charge(OTHER, SECOND, 10)
            passed += 10
        server.step()
    assert passed <= server.served["flood"] + PART


def test_small_requests_of_priority_1_cannot_starve_those_that_wait(server):
    server.add(FLOOD, 100_000)
    passed = 0
    for _ in range(100):
        while server.queue.has_share_left(OTHER, FIRST, PART):
            server.queue.charge(OTHER, FIRST, 10)
            passed += 10
        server.step()
    assert passed <= 7 * (server.served["flood"] + PART)
    server.add(FLOOD, 10, FIRST, small=True)
    assert not server.queue.has_share_left(OTHER, SECOND, PART)


@pytest.mark.parametrize("priority", [FIRST, SECOND])
def test_the_estimated_work_before_a_request_is_close_to_what_is_done_before(server, priority):
    for _ in range(8):
        server.add(FLOOD, 1_000)
    server.add(Caller("third"), 500)
    large = server.add(OTHER, 800, priority)
    assert server.queue.work_before(large) == pytest.approx(server.time_of(large), rel=0.35)


def test_callers_that_left_are_forgotten(server):
    server.add(FLOOD, 10_000_000)
    for number in range(5_000):
        server.add(Caller(str(number)), 1, small=True)
        server.step()
        server.step()
    assert len(server.queue._levels[SECOND].flows) < 2_000
