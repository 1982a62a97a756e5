"""The policies as functions of loads, without servers or time."""

from collections import Counter
from dataclasses import dataclass
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritonembed_protocol.policies import LeastLoaded, Random, RoundRobin, make_policy

NAMES = ["round_robin", "random", "least_loaded"]


@dataclass
class Server:
    key: str
    load: float = 0


def servers(keys):
    return [Server(key) for key in keys]


candidate_lists = st.lists(st.permutations("abcdef").flatmap(lambda order: st.integers(1, 6).map(lambda n: order[:n])))


@given(candidate_lists, st.integers())
def test_round_robin_alternates_between_any_two_servers_while_both_are_there(lists, seed):
    policy = RoundRobin(seed)
    turns = [(present, present[policy.choose(servers(present))]) for present in lists]
    for pair in combinations("abcdef", 2):
        last = None
        for present, chosen in turns:
            if not set(pair) <= set(present):
                last = None  # One of the two left, so another stretch begins.
            elif chosen in pair:
                assert chosen != last
                last = chosen


@given(st.integers(1, 8), st.integers(0, 100), st.integers())
def test_round_robin_differs_by_at_most_one_and_keeps_its_order(count, requests, seed):
    policy, present = RoundRobin(seed), servers(map(str, range(count)))
    chosen = [policy.choose(present) for _ in range(requests)]
    counts = [chosen.count(index) for index in range(count)]
    assert max(counts) - min(counts) <= 1
    assert chosen[count:] == chosen[: max(len(chosen) - count, 0)]


def test_round_robin_does_not_make_up_for_what_a_server_missed():
    policy = RoundRobin(1)
    for _ in range(100):
        policy.choose(servers("ab"))
    chosen = Counter("abc"[policy.choose(servers("abc"))] for _ in range(30))
    assert chosen == {"a": 10, "b": 10, "c": 10}


def test_round_robin_begins_anywhere():
    assert {RoundRobin(seed).choose(servers("abc")) for seed in range(50)} == {0, 1, 2}


def test_round_robin_forgets_servers_that_left():
    policy = RoundRobin(1)
    for number in range(5000):
        policy.choose(servers([f"pod-{number}", "stays"]))
    assert len(policy._turns) <= 1024


@given(st.lists(st.integers(0, 5), min_size=1), st.integers())
def test_least_loaded_takes_a_server_with_the_least_load(loads, seed):
    candidates = [Server(str(index), load) for index, load in enumerate(loads)]
    assert loads[LeastLoaded(seed).choose(candidates)] == min(loads)


def test_least_loaded_breaks_ties_evenly():
    policy = LeastLoaded(1)
    candidates = [Server("a", 3), Server("b", 1), Server("c", 1), Server("d", 1)]
    counts = Counter(policy.choose(candidates) for _ in range(3000))
    assert counts[0] == 0
    assert all(900 < counts[index] < 1100 for index in (1, 2, 3))


@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=8),
    st.lists(st.integers(1, 100), min_size=1, max_size=200),
    st.data(),
)
def test_a_server_that_joins_is_filled_up_to_the_level_of_the_others_and_no_further(loads, burst, data):
    """This holds for every burst, and whichever requests end meanwhile."""
    policy = LeastLoaded(data.draw(st.integers()))
    candidates = [Server(str(index), load) for index, load in enumerate(loads)]
    newcomer = Server("new")
    candidates.append(newcomer)
    for work in burst:
        chosen = candidates[policy.choose(candidates)]
        chosen.load += work  # A request counts from when it is sent.
        others = [server.load for server in candidates if server is not newcomer]
        assert chosen is not newcomer or newcomer.load <= min(others) + work
        answered = data.draw(st.sampled_from(candidates))
        answered.load = data.draw(st.integers(0, int(answered.load)))


@given(st.integers(1, 8), st.lists(st.integers(1, 100), min_size=1), st.integers())
def test_least_loaded_keeps_servers_within_one_request_of_each_other(count, burst, seed):
    policy, candidates = LeastLoaded(seed), servers(map(str, range(count)))
    for work in burst:
        candidates[policy.choose(candidates)].load += work
    loads = [server.load for server in candidates]
    assert max(loads) - min(loads) <= max(burst)


def test_random_takes_every_server_as_often():
    policy = Random(1)
    counts = Counter(policy.choose(servers("abc")) for _ in range(3000))
    assert all(900 < counts[index] < 1100 for index in range(3))


@pytest.mark.parametrize("name", NAMES)
@given(candidate_lists, st.integers())
def test_the_same_seed_chooses_the_same_servers(name, lists, seed):
    one, other = make_policy(name, seed), make_policy(name, seed)
    assert [one.choose(servers(keys)) for keys in lists] == [other.choose(servers(keys)) for keys in lists]


@pytest.mark.parametrize("name", NAMES)
def test_without_candidates_there_is_nothing_to_choose(name):
    with pytest.raises(ValueError, match="no server"):
        make_policy(name).choose([])


def test_names_of_policies():
    assert [type(make_policy(name)) for name in NAMES] == [RoundRobin, Random, LeastLoaded]
    with pytest.raises(ValueError, match="round_robin, random, least_loaded"):
        make_policy("fastest")
