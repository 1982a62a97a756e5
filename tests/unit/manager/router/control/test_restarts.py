"""When a process that died is restarted."""

from tritonembed_manager.router.control.restarts import RestartLimits, Restarts


def test_the_first_restart_is_at_once_and_the_delays_double_up_to_the_longest():
    restarts = Restarts(RestartLimits(limit=7, window=600, first_delay=1, longest_delay=5))
    assert [restarts.died(now) for now in range(7)] == [0, 1, 2, 4, 5, 5, 5]


def test_a_process_stays_down_after_the_given_number_of_deaths_within_the_time():
    restarts = Restarts(RestartLimits(limit=2, window=10))
    assert [restarts.died(0), restarts.died(1)] != [None, None]
    assert restarts.died(2) is None
    assert restarts.count == 2


def test_deaths_of_long_ago_do_not_count():
    restarts = Restarts(RestartLimits(limit=1, window=10))
    assert [restarts.died(now) for now in (0, 11, 22)] == [0, 0, 0]
    assert restarts.count == 3


def test_a_death_that_is_forgiven_does_not_count():
    restarts = Restarts(RestartLimits(limit=1, window=10))
    for now in range(5):
        assert restarts.died(now) == 0
        restarts.forgive()
    assert restarts.died(5) == 0
    assert restarts.died(6) is None


def test_restarts_can_be_turned_off():
    assert Restarts(RestartLimits(limit=0, window=600)).died(0) is None
