"""The order of a comparison's steps, with peers that cost nothing and made-up samples."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tritonembed_perf.compare import contest as contest_module
from tritonembed_perf.compare.contest import Contest, SampleWindow
from tritonembed_perf.compare.launching import CannotRunError
from tritonembed_perf.compare.peer import Bench
from tritonembed_perf.compare.results import Result, Sample, Trial
from tritonembed_perf.failures import BenchError

BIG, SMALL = Trial(50, 64, 4), Trial(50, 1, 16)
BENCH = Bench(Path("model"), "float32", "cpu", 2, Path("work"))


def sample(speed: float, *, errors: int = 0, wrong: int = 0) -> Sample:
    failed = {"UNAVAILABLE": errors} if errors else {}
    figures = {"tokens_per_second": speed, "requests_per_second": speed / 50, "p50_ms": 1.0, "p99_ms": 3.0}
    return {**figures, "errors": failed, "wrong": wrong, "faults": [], "client_saturated": False}


@dataclass
class FakePeer:
    """flags: the flags of its configurations. fails: for flags that do not start, the number of starts that succeed."""

    name: str
    flags: Sequence[str] = ("--only",)
    missing: str = ""
    fails: dict[str, int] = field(default_factory=dict)
    note: str = ""
    log: list[str] = field(default_factory=list)

    def prepare(self, bench: Bench) -> None:
        if self.missing:
            raise CannotRunError(self.missing)

    def configs(self, bench: Bench) -> Sequence[str]:
        return self.flags

    @contextmanager
    def running(self, bench: Bench, config: str) -> Iterator[Any]:
        starts = self.log.count(f"{self.name} {config} started")
        if starts >= self.fails.get(config, 1 << 30):
            raise CannotRunError("it does not start: no /home/me/here/weights.bin")
        self.log.append(f"{self.name} {config} started")
        try:
            yield (self.name, config)
        finally:
            self.log.append(f"{self.name} {config} stopped")


Take = Callable[[tuple[str, str], Trial], Sample | None]


@pytest.fixture
def compete(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Contest]:
    """Makes a contest whose samples are `take((peer, flags), trial)`."""

    def make(peers: Sequence[Any], take: Take, *trials: Trial) -> Contest:
        monkeypatch.setattr(contest_module, "take_sample", lambda endpoint, trial, *_: take(endpoint, trial))
        nothing: Any = None
        return Contest(BENCH, peers, trials or (BIG, SMALL), SampleWindow(6.0, 0.0), nothing, lambda _: None)

    return make


def speeds(result: Result, trial: Trial = BIG) -> list[float]:
    """Of all rounds with the best settings, the median first."""
    best = result.best(trial)
    return [one["tokens_per_second"] for one in best[1]] if best else []


def test_the_first_round_tries_all_settings_and_later_rounds_the_best_of_each_load(
    compete: Callable[..., Contest],
) -> None:
    found = {("--a", BIG): 10.0, ("--a", SMALL): 1.0, ("--b", BIG): 5.0, ("--b", SMALL): 2.0, ("--c", BIG): 1.0}
    peer = FakePeer("one", ("--a", "--b", "--c"))
    contest = compete([peer], lambda endpoint, trial: sample(found.get((endpoint[1], trial), 0.5)))
    assert contest.run(3)
    [result] = contest.results
    assert {str(trial): result.best(trial)[0] for trial in (BIG, SMALL)} == {"50x64@4": "--a", "50x1@16": "--b"}
    assert (speeds(result), speeds(result, SMALL)) == ([10.0] * 3, [2.0] * 3)
    assert [peer.log.count(f"one {flag} started") for flag in ("--a", "--b", "--c")] == [3, 3, 1]


@pytest.mark.parametrize("fault", [{"errors": 1}, {"wrong": 1}])
def test_settings_that_fail_or_answer_wrongly_are_not_the_best(
    compete: Callable[..., Contest], fault: dict[str, int]
) -> None:
    found = {"--fast": sample(100.0, **fault), "--right": sample(10.0)}
    contest = compete([FakePeer("one", ("--fast", "--right"))], lambda endpoint, _: found[endpoint[1]])
    contest.run(1)
    assert speeds(contest.results[0]) == [10.0]


def test_rounds_go_from_peer_to_peer_and_the_median_counts(compete: Callable[..., Contest]) -> None:
    found = {"one": iter([7.0, 100.0, 9.0]), "two": iter([1.0, 2.0, 3.0])}
    order = []

    def take(endpoint: tuple[str, str], trial: Trial) -> Sample:
        order.append(endpoint[0])
        return sample(next(found[endpoint[0]]))

    contest = compete([FakePeer("one"), FakePeer("two")], take, BIG)
    contest.run(3)
    assert order == ["one", "two"] * 3
    assert [speeds(result)[0] for result in contest.results] == [9.0, 2.0]


def test_a_server_is_started_once_for_all_loads_that_want_the_same_flags(compete: Callable[..., Contest]) -> None:
    peer = FakePeer("one", ("--a",))
    contest = compete([peer], lambda *_: sample(1.0))
    contest.run(2)
    assert peer.log == ["one --a started", "one --a stopped"] * 2


def test_a_peer_that_is_missing_or_does_not_start_has_a_reason_and_the_others_go_on(
    compete: Callable[..., Contest],
) -> None:
    absent = FakePeer("absent", missing="it is not on PATH")
    broken = FakePeer("broken", ("--a", "--b"), fails={"--a": 0, "--b": 0})
    contest = compete([absent, broken, FakePeer("well")], lambda *_: sample(1.0))
    assert contest.run(2)
    one, two, three = contest.results
    assert one.why_not == "it is not on PATH"
    assert not absent.log
    assert two.why_not == "it does not start: no weights.bin (--a)"
    assert len(speeds(three)) == 2
    assert not three.why_not


def test_a_start_that_fails_later_keeps_the_earlier_samples(compete: Callable[..., Contest]) -> None:
    contest = compete([FakePeer("one", ("--a",), fails={"--a": 2})], lambda *_: sample(1.0))
    assert contest.run(4)
    [result] = contest.results
    assert len(speeds(result)) == 2
    assert result.troubles == ["it does not start: no weights.bin (--a)"]


def test_a_client_that_dies_is_a_trouble_and_not_the_end(compete: Callable[..., Contest]) -> None:
    def take(endpoint: tuple[str, str], trial: Trial) -> Sample:
        if endpoint[0] == "one":
            raise BenchError("a client process ended in the middle of its work")
        return sample(1.0)

    contest = compete([FakePeer("one"), FakePeer("two")], take)
    assert contest.run(1)
    assert contest.results[0].troubles == ["a client process ended in the middle of its work (--only)"]
    assert speeds(contest.results[1])


def test_a_peer_without_an_answer_in_the_time_is_reported_as_too_slow(compete: Callable[..., Contest]) -> None:
    contest = compete([FakePeer("one")], lambda *_: sample(0.0), BIG)
    assert contest.run(1)
    assert contest.results[0].troubles == ["50x64@4: no answer within 6 s (--only)"]


def test_an_interruption_keeps_the_samples_and_stops_the_peer(compete: Callable[..., Contest]) -> None:
    taken = iter([sample(1.0), sample(2.0), None])

    def take(endpoint: tuple[str, str], trial: Trial) -> Sample:
        found = next(taken)
        if found is None:
            raise KeyboardInterrupt
        return found

    peer = FakePeer("one", ("--a",))
    contest = compete([peer, FakePeer("two")], take)
    assert not contest.run(1)
    assert peer.log[-1] == "one --a stopped"
    assert [one["tokens_per_second"] for one in contest.results[0].every_sample()] == [1.0, 2.0]
    assert not contest.results[1].samples


def test_of_an_offered_rate_the_least_p99_is_the_best(compete: Callable[..., Contest]) -> None:
    offered = Trial(50, 1, rate=20)
    late = {"--a": 9.0, "--b": 4.0}
    peer = FakePeer("one", ("--a", "--b"))
    contest = compete([peer], lambda endpoint, _: sample(1.0) | {"p99_ms": late[endpoint[1]]}, BIG, offered)
    contest.run(2)
    assert [contest.results[0].best(trial)[0] for trial in (BIG, offered)] == ["--a", "--b"]


def test_a_program_without_offered_rates_has_no_sample_of_them(compete: Callable[..., Contest]) -> None:
    offered = Trial(50, 1, rate=20)
    contest = compete([FakePeer("one")], lambda _, trial: None if trial.rate else sample(1.0), BIG, offered)
    assert contest.run(1)
    assert contest.results[0].of(offered) is None
