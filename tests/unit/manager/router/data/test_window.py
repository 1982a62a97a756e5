"""The window of a server, against a simulated one."""

import pytest

from tritonembed_manager.router.data.window import FRESH_S, LEAST_PART, LOOSE_S, TIGHT_S, Window


class Simulated:
    """A server that computes one part at a time: `overhead` seconds and then `rate` bytes per second. Its queue is
    always filled up to the window."""

    def __init__(self, rate, overhead=0.001, replicas=1):
        self.now, self.done = 100.0, 0
        self.rate, self.overhead = rate, overhead
        self.window = Window(replicas, lambda: self.now)

    def run(self, seconds, time_at_server=TIGHT_S):
        end = self.now + seconds
        while self.now < end:
            part = self.window.part(time_at_server)
            self.now += self.overhead + part / self.rate
            self.done += part
            self.window.look(self.done, waiting=True)
        return self.window.size(time_at_server)


@pytest.mark.parametrize("rate", [100_000, 1_000_000, 12_000_000])
@pytest.mark.parametrize("seconds", [TIGHT_S, LOOSE_S])
def test_work_is_at_a_server_for_about_the_time_that_it_may_be(rate, seconds):
    simulated = Simulated(rate)
    assert simulated.run(30, seconds) == pytest.approx(rate * seconds, rel=0.15)


def test_the_window_follows_a_server_that_becomes_slower_and_faster():
    simulated = Simulated(1_000_000)
    simulated.run(5)
    simulated.rate = 300_000
    assert simulated.run(5) == pytest.approx(300_000 * TIGHT_S, rel=0.15)
    simulated.rate = 2_000_000
    assert simulated.run(5) == pytest.approx(2_000_000 * TIGHT_S, rel=0.15)


def test_a_slow_server_has_at_least_one_part_for_each_replica_and_one_more():
    assert Simulated(1_000).run(60) == 2 * LEAST_PART
    four = Simulated(1_000, replicas=4)
    assert four.run(60) == 5 * LEAST_PART
    assert four.window.part(TIGHT_S) == LEAST_PART


def test_a_light_load_measures_nothing():
    simulated = Simulated(1_000_000)
    before = simulated.run(5)
    for _ in range(100):
        simulated.now += 1
        simulated.done += 10
        simulated.window.look(simulated.done, waiting=False)
    assert simulated.window.size(TIGHT_S) == before


def test_a_pause_is_no_part_of_a_measurement():
    simulated = Simulated(1_000_000)
    before = simulated.run(5)
    simulated.window.look(simulated.done, waiting=False)
    simulated.now += 10
    simulated.window.look(simulated.done, waiting=True)
    assert simulated.run(0.3) == pytest.approx(before, rel=0.15)


def test_requests_that_end_without_an_answer_measure_nothing():
    simulated = Simulated(1_000_000)
    simulated.run(5)
    simulated.now += 0.3
    simulated.window.look(simulated.done, waiting=True)
    before = simulated.window.size(TIGHT_S)
    for _ in range(40):
        simulated.now += 0.3
        simulated.window.look(simulated.done, waiting=True)
    assert simulated.window.size(TIGHT_S) == before


def test_a_small_answer_beside_a_large_part_measures_nothing():
    simulated = Simulated(16_000)
    simulated.window.look(0, waiting=True)
    simulated.now += 0.3
    simulated.window.look(60, waiting=True)
    assert simulated.window.best_rate is None
    simulated.now += 0.7
    simulated.window.look(60 + 16_000, waiting=True)
    assert simulated.window.best_rate == pytest.approx(16_060)


def test_an_old_measurement_is_no_reason_to_refuse():
    simulated = Simulated(1_000_000)
    assert simulated.window.best_rate is None
    simulated.run(5)
    assert simulated.window.best_rate == pytest.approx(1_000_000, rel=0.15)
    simulated.now += FRESH_S + 1
    assert simulated.window.best_rate is None
    assert simulated.window.size(TIGHT_S) == pytest.approx(1_000_000 * TIGHT_S, rel=0.15)


def test_a_server_that_hung_is_as_fast_as_before():
    simulated = Simulated(1_000_000)
    simulated.run(5)
    simulated.now += 20
    simulated.done += 1000
    simulated.window.look(simulated.done, waiting=True)
    assert simulated.window.best_rate == pytest.approx(1_000_000, rel=0.15)
    simulated.rate = 2_000_000
    simulated.run(5)
    assert simulated.window.best_rate == pytest.approx(2_000_000, rel=0.15)


def test_a_worker_that_was_replaced_takes_its_count_with_it():
    simulated = Simulated(1_000_000)
    before = simulated.run(5)
    simulated.done = 0
    simulated.now += 1
    simulated.window.look(0, waiting=True)
    assert simulated.window.size(TIGHT_S) == before
