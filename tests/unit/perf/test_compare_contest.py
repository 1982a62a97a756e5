"""The order of a comparison's steps, with peers that cost nothing and made-up samples."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tritonembed_perf.compare import contest as contest_module
from tritonembed_perf.compare.contest import Contest, Plan
from tritonembed_perf.compare.environments import Bench, CannotRunError
from tritonembed_perf.compare.measuring import Window
from tritonembed_perf.compare.results import Result, Sample, Trial
from tritonembed_perf.failures import BenchError

BIG, SMALL = Trial(50, 64, 4), Trial(50, 1, 16)
BENCH = Bench(Path("model"), "float32", "cpu", 2, Path("work"))


def sample(speed: float, *, errors: int = 0, wrong: int = 0, faults: tuple[str, ...] = ()) -> Sample:
    return Sample(speed, speed / 50, 1.0, 2.0, 3.0, errors, wrong, faults, 0.5, False)


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

    def make(peers: Sequence[Any], take: Take, **changes: Any) -> Contest:
        monkeypatch.setattr(contest_module, "take_sample", lambda endpoint, trial, *_: take(endpoint, trial))
        chosen: dict[str, Any] = {
            "closed": [BIG, SMALL],
            "offered": [],
            "rounds": 1,
            "window": Window(6.0, 0.0),
            "sweep_seconds": 3.0,
        }
        return Contest(BENCH, peers, Plan(**(chosen | changes)), None, lambda _: None)  # type: ignore[arg-type]

    return make


def test_each_load_is_measured_with_the_configuration_that_was_best_for_it(compete: Callable[..., Contest]) -> None:
    speeds = {("--a", BIG): 10.0, ("--a", SMALL): 1.0, ("--b", BIG): 5.0, ("--b", SMALL): 2.0}
    peer = FakePeer("one", ("--a", "--b"))
    contest = compete([peer], lambda endpoint, trial: sample(speeds[endpoint[1], trial]))
    assert contest.run()
    [result] = contest.results
    assert result.chosen == {str(BIG): "--a", str(SMALL): "--b"}
    assert {name: [one.tokens_per_second for one in many] for name, many in result.rounds.items()} == {
        str(BIG): [10.0],
        str(SMALL): [2.0],
    }
    assert set(result.sweep) == {"--a", "--b"}


def test_settings_of_an_earlier_comparison_replace_the_sweep(compete: Callable[..., Contest]) -> None:
    known = Result("known", chosen={str(BIG): "--b", str(SMALL): "--a", "8x1@1": "--c"})
    gone = Result("gone", chosen={str(BIG): "--a", str(SMALL): "--no-longer"})
    part = Result("part", chosen={str(BIG): "--a"})
    peers = [FakePeer(name, ("--a", "--b")) for name in ("known", "gone", "part", "new")]
    contest = compete(
        peers,
        lambda endpoint, _: sample(2.0 if endpoint[1] == "--b" else 1.0),
        swept={one.system: one for one in (known, gone, part)},
    )
    contest.run()
    assert contest.results[0].chosen == {str(BIG): "--b", str(SMALL): "--a"}
    assert not contest.results[0].sweep
    assert peers[0].log.count("known --a started") == 1
    for result in contest.results[1:]:
        assert set(result.sweep) == {"--a", "--b"}
        assert result.chosen == {str(BIG): "--b", str(SMALL): "--b"}


@pytest.mark.parametrize("fault", [{"errors": 1}, {"wrong": 1}])
def test_a_configuration_that_fails_or_answers_wrongly_is_not_chosen(
    compete: Callable[..., Contest], fault: dict[str, int]
) -> None:
    found = {"--fast": sample(100.0, **fault), "--right": sample(10.0)}  # type: ignore[arg-type]
    contest = compete([FakePeer("one", ("--fast", "--right"))], lambda endpoint, _: found[endpoint[1]])
    contest.run()
    assert set(contest.results[0].chosen.values()) == {"--right"}


def test_rounds_go_from_peer_to_peer_and_the_median_counts(compete: Callable[..., Contest]) -> None:
    speeds = {"one": iter([7.0, 100.0, 9.0]), "two": iter([1.0, 2.0, 3.0])}
    order = []

    def take(endpoint: tuple[str, str], trial: Trial) -> Sample:
        order.append(endpoint[0])
        return sample(next(speeds[endpoint[0]]))

    contest = compete([FakePeer("one"), FakePeer("two")], take, closed=[BIG], rounds=3)
    contest.run()
    assert order == ["one", "two"] * 3
    medians = [result.of(BIG) for result in contest.results]
    assert [one.tokens_per_second for one in medians if one] == [9.0, 2.0]


def test_a_server_is_started_once_for_all_loads_that_want_the_same_flags(compete: Callable[..., Contest]) -> None:
    peer = FakePeer("one", ("--a",))
    contest = compete([peer], lambda *_: sample(1.0), rounds=2)
    contest.run()
    assert peer.log == ["one --a started", "one --a stopped"] * 2


def test_a_peer_that_cannot_be_installed_or_started_has_a_reason_and_the_others_go_on(
    compete: Callable[..., Contest],
) -> None:
    absent = FakePeer("absent", missing="it is not on PATH")
    broken = FakePeer("broken", ("--a", "--b"), fails={"--a": 0, "--b": 0})
    contest = compete([absent, broken, FakePeer("well")], lambda *_: sample(1.0))
    assert contest.run()
    one, two, three = contest.results
    assert one.why_not == "it is not on PATH"
    assert not absent.log
    assert two.why_not == "it does not start: no weights.bin (--a)"
    assert not two.rounds
    assert three.rounds
    assert not three.why_not


def test_a_start_that_fails_later_keeps_the_earlier_samples(compete: Callable[..., Contest]) -> None:
    contest = compete([FakePeer("one", ("--a",), fails={"--a": 2})], lambda *_: sample(1.0), rounds=4)
    assert contest.run()
    [result] = contest.results
    assert len(result.rounds[str(BIG)]) == 2
    assert result.troubles == ["it does not start: no weights.bin (--a)"]


def test_a_client_that_dies_is_a_trouble_and_not_the_end(compete: Callable[..., Contest]) -> None:
    def take(endpoint: tuple[str, str], trial: Trial) -> Sample:
        if endpoint[0] == "one":
            raise BenchError("a client process ended in the middle of its work")
        return sample(1.0)

    contest = compete([FakePeer("one"), FakePeer("two")], take)
    assert contest.run()
    assert contest.results[0].troubles == ["a client process ended in the middle of its work (--only)"]
    assert contest.results[1].rounds


def test_a_peer_without_an_answer_in_the_time_is_reported_as_too_slow(compete: Callable[..., Contest]) -> None:
    contest = compete([FakePeer("one")], lambda *_: sample(0.0), closed=[BIG])
    assert contest.run()
    assert contest.results[0].troubles == ["50x64@4: no answer within 6 s (--only)"]


def test_without_rounds_the_sweep_is_the_measurement(compete: Callable[..., Contest]) -> None:
    peer = FakePeer("one", ("--a", "--b"))
    contest = compete([peer], lambda endpoint, _: sample(1.0 if endpoint[1] == "--a" else 2.0), rounds=0)
    contest.run()
    found = contest.results[0].of(BIG)
    assert found is not None
    assert found.tokens_per_second == 2.0
    assert peer.log.count("one --b started") == 1


def test_an_interruption_keeps_the_samples_and_stops_the_peer(
    compete: Callable[..., Contest],
) -> None:
    taken = iter([sample(1.0), sample(2.0), None])

    def take(endpoint: tuple[str, str], trial: Trial) -> Sample:
        found = next(taken)
        if found is None:
            raise KeyboardInterrupt
        return found

    peer = FakePeer("one", ("--a",))
    contest = compete([peer, FakePeer("two")], take)
    assert not contest.run()
    assert peer.log[-1] == "one --a stopped"
    assert [one.tokens_per_second for many in contest.results[0].rounds.values() for one in many] == [1.0, 2.0]
    assert not contest.results[1].rounds


def test_offered_rates_take_the_configuration_of_the_most_similar_load(
    compete: Callable[..., Contest],
) -> None:
    offered = Trial(50, 1, rate=20)
    speeds = {("--a", BIG): 2.0, ("--a", SMALL): 1.0, ("--b", BIG): 1.0, ("--b", SMALL): 2.0}
    peer = FakePeer("one", ("--a", "--b"))
    contest = compete([peer], lambda endpoint, trial: sample(speeds.get((endpoint[1], trial), 9.0)), offered=[offered])
    contest.run()
    assert contest.results[0].chosen[str(offered)] == "--b"
    assert contest.results[0].rounds[str(offered)]


def test_a_program_without_offered_rates_has_a_row_without_samples(compete: Callable[..., Contest]) -> None:
    offered = Trial(50, 1, rate=20)
    contest = compete([FakePeer("one")], lambda _, trial: None if trial.rate else sample(1.0), offered=[offered])
    assert contest.run()
    assert contest.results[0].rounds[str(offered)] == []
    assert contest.results[0].of(offered) is None
