"""The simulated fleet is the queue that queueing theory computes, and rules order servers as HPAs do."""

from math import factorial

import numpy as np
import pytest

from tritonembed_perf.autoscaling import (
    Behavior,
    Bursts,
    LoadRule,
    QueueTime,
    Scaler,
    Seen,
    Use,
    Wave,
    arrivals,
    simulate,
    steady,
)
from tritonembed_perf.scripts.autoscale import RULES, Simulation, run

HOUR = 3600.0


def waits(services, rate, servers, seconds, seed=1):
    """The mean wait of requests behind a constant number of servers, in seconds."""
    times = arrivals(steady, rate, seconds, seed)
    own = services(len(times))
    found = simulate(times, own, servers, seconds)
    return float(np.mean(found.latencies - own))


def exponential(count):
    return np.random.default_rng(7).exponential(1.0, count)


def constant(count):
    return np.ones(count)


@pytest.mark.parametrize("use", [0.5, 0.8])
def test_one_server_waits_as_in_m_m_1(use):
    # Kleinrock, Queueing Systems 1: W = rho / (mu - lambda).
    assert waits(exponential, use, 1, 300_000) == pytest.approx(use / (1 - use), rel=0.05)


@pytest.mark.parametrize("use", [0.5, 0.8])
def test_one_server_with_equal_requests_waits_as_in_m_d_1(use):
    # Pollaczek and Khinchine: half of M/M/1's wait.
    assert waits(constant, use, 1, 300_000) == pytest.approx(use / (1 - use) / 2, rel=0.05)


def erlang_c(servers, offered):
    """The probability that a request waits in M/M/c. offered: servers' worth of work."""
    last = offered**servers / factorial(servers) * servers / (servers - offered)
    return last / (sum(offered**k / factorial(k) for k in range(servers)) + last)


@pytest.mark.parametrize("servers", [4, 20])
def test_many_servers_wait_as_in_m_m_c(servers):
    offered = 0.85 * servers
    expected = erlang_c(servers, offered) / (servers - offered)
    assert waits(exponential, offered, servers, 400_000 / servers) == pytest.approx(expected, rel=0.1)


def test_the_scrapes_add_up():
    times, services = arrivals(steady, 8.0, HOUR, 3), exponential(len(arrivals(steady, 8.0, HOUR, 3)))
    found = simulate(times, services, 10, HOUR)
    last = found.seen[-1]
    assert last.started == len(times)
    assert last.arrived == pytest.approx(services.sum())
    for seen in found.seen:
        assert seen.arrived == pytest.approx(seen.busy + seen.load)
    assert found.server_seconds == 10 * HOUR
    # Little's law: the mean of the work in the system follows from waits and services.
    inside = sum((found.latencies - services) * services + services**2 / 2) / HOUR
    assert np.mean([seen.load for seen in found.seen]) == pytest.approx(inside, rel=0.1)


def test_rates_change_as_asked():
    wave = arrivals(Wave(HOUR, low=0.25), 50.0, HOUR, 1)
    edge, middle = np.sum(wave < 300) / 300, np.sum(abs(wave - 1800) < 150) / 300
    assert (edge, middle) == pytest.approx((13, 50), rel=0.15)
    bursts = arrivals(Bursts(5, 100 * HOUR, calm=0.4, burst=60, between=300), 1.0, 100 * HOUR, 1)
    assert len(bursts) / (100 * HOUR) == pytest.approx(0.4 * 5 / 6 + 1 / 6, rel=0.05)


def seen(at, **values):
    return Seen(
        **{
            "at": at,
            "ready": 4,
            "ordered": 4,
            "arrived": 0.0,
            "busy": 0.0,
            "load": 0.0,
            "started": 0,
            "waited": 0.0,
            **values,
        }
    )


def test_rules_read_what_prometheus_would_show():
    scrapes = [seen(15.0 * number, arrived=45.0 * number, busy=30.0 * number, started=number) for number in range(1, 9)]
    # 3 seconds of work per second, at 0.7 per server; 2 of 4 servers are busy.
    assert LoadRule()(scrapes) == 5
    assert Use(0.8)(scrapes) == 3
    scrapes[-1] = seen(120.0, arrived=360.0, busy=240.0, load=84.0, started=99, waited=19.4 * 0.5)
    assert LoadRule()(scrapes) == 9
    # Of 93 requests in 30 s, 94 with the formula's one; 103 ms each: twice the target of 50 ms, over 4 servers.
    assert QueueTime()(scrapes) == 9
    # Behind a manager it sees a part of that.
    assert QueueTime(most=0.06)(scrapes) == 5


def test_an_autoscaler_keeps_to_its_behavior():
    wanted = [10, 10, 40, 40, 40, 40, 40, 9, 9, *[9] * 30]
    scaler = Scaler(lambda found: wanted[len(found) - 1], Behavior())
    count, counts = 10, []
    for number in range(len(wanted)):
        count = scaler.decide([seen(15.0 * (each + 1)) for each in range(number + 1)], count)
        counts.append(count)
    # It doubles within a minute, and goes down by a tenth per minute once five minutes wanted less.
    assert counts[:6] == [10, 10, 20, 20, 20, 20]
    assert counts[6:8] == [40, 40]
    down = counts.index(36)
    assert all(each == 40 for each in counts[8:down])
    assert down - counts.index(40) >= 20
    assert counts[down : down + 4] == [36] * 4


def test_the_same_seed_gives_the_same_figures_and_ours_is_better_than_what_waits_alone():
    # Small, but with everything that the report has.
    rows = {rule: run(Simulation(20, "wave", rule, seconds=1800.0)) for rule in RULES}
    assert rows["ours"] == run(Simulation(20, "wave", "ours", seconds=1800.0))
    assert rows["ours"] != run(Simulation(20, "wave", "ours", seconds=1800.0, seed=2))
    assert rows["all the time"]["server_hours"] == 10.0
    assert rows["ours"]["p99_s"] < rows["ours, only what waits"]["p99_s"]
    assert rows["ours"]["cost"] < rows["Triton's queue time, if all wait there"]["cost"] < 4
