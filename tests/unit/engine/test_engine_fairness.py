"""Huge requests: their effect on other requests, and why they end early. Time passes only in batches."""

from collections.abc import Callable, Iterator

import pytest
from tests.unit.engine.fake_executor import PATIENCE, FakeExecutor, ids, request_of, vectors_of

from tritonembed_engine.batching import LEAST_SLICE_TOKENS, MIXED_SECONDS, MIXED_SLICE_SECONDS
from tritonembed_engine.engine import EmbeddingEngine
from tritonembed_engine.errors import Abandoned, DeadlineExceeded, DeadlineUnreachable

HUGE = [ids(1, 2, 3, 4, 5)] * 40


class Case:
    """An engine whose batches each take a second. It can be stopped within a batch."""

    def __init__(self, executor: FakeExecutor) -> None:
        self.now = 100.0
        self.executor = executor
        executor.before_result = self._pass
        self.engine = EmbeddingEngine(executor, clock=lambda: self.now)

    def _pass(self) -> None:
        self.now += 1.0


@pytest.fixture
def make() -> Iterator[Callable[..., Case]]:
    made: list[Case] = []

    def make_one(executor: FakeExecutor | None = None) -> Case:
        made.append(Case(executor or FakeExecutor(depth=1)))
        return made[-1]

    yield make_one
    for case in made:
        case.executor.let_go()
        case.engine.close()


def test_a_small_request_is_in_the_next_batch_while_a_huge_one_is_computed(make: Callable[..., Case]) -> None:
    case = make()
    case.executor.hold()
    huge = case.engine.submit(HUGE)
    assert case.executor.holding.wait(PATIENCE)
    small = case.engine.submit([ids(9)])
    case.executor.let_go()
    assert small.result(PATIENCE).tolist() == vectors_of([ids(9)]).tolist()
    assert ids(9) in case.executor.batches[1]
    assert len(huge.result(PATIENCE)) == len(HUGE)


def test_a_deadline_that_passes_after_its_first_batch_ends_a_request(make: Callable[..., Case]) -> None:
    case = make()
    late = case.engine.submit(HUGE, deadline=case.now + 2.5)
    with pytest.raises(DeadlineExceeded, match="deadline passed before its end"):
        late.result(PATIENCE)
    assert len(case.executor.batches) == 3


def test_a_request_whose_client_has_gone_is_not_computed_further(make: Callable[..., Case]) -> None:
    case = make()
    gone = case.engine.submit_all([request_of(HUGE, is_abandoned=lambda: len(case.executor.batches) == 2)])[0]
    with pytest.raises(Abandoned):
        gone.result(PATIENCE)
    assert len(case.executor.batches) == 2


def test_a_request_that_cannot_meet_its_deadline_is_refused_once_the_speed_is_known(make: Callable[..., Case]) -> None:
    case = make()
    case.engine.submit(HUGE).result(PATIENCE)  # 10 tokens per second
    computed = len(case.executor.batches)
    with pytest.raises(DeadlineUnreachable, match=r"20\.0 s of work at 10 tokens per second, and 5\.0 s are left"):
        case.engine.submit(HUGE, deadline=case.now + 5.0).result(PATIENCE)
    assert len(case.executor.batches) == computed
    assert len(case.engine.submit(HUGE, deadline=case.now + 25.0).result(PATIENCE)) == len(HUGE)


def test_waiting_requests_count_towards_the_estimate(make: Callable[..., Case]) -> None:
    case = make()
    case.engine.submit(HUGE).result(PATIENCE)
    case.executor.holding.clear()
    case.executor.hold()
    first = case.engine.submit(HUGE)
    assert case.executor.holding.wait(PATIENCE)
    with pytest.raises(DeadlineUnreachable, match=r"about 39\.0 s"):
        case.engine.submit(HUGE, deadline=case.now + 25.0).result(PATIENCE)
    # Only the tokens ahead of a request count: a small request gets in between.
    small = case.engine.submit([ids(9)], deadline=case.now + 5.0)
    case.executor.let_go()
    assert len(small.result(PATIENCE)) == 1
    assert len(first.result(PATIENCE)) == len(HUGE)


@pytest.mark.parametrize(("depth", "first"), [(1, LEAST_SLICE_TOKENS), (2, 4096)])
def test_batches_of_an_executor_that_blocks_are_as_long_as_its_speed_allows(
    make: Callable[..., Case], depth: int, first: int
) -> None:
    executor = FakeExecutor(max_batch_tokens=4096, max_batch_sentences=4096, depth=depth)
    case = make(executor)
    executor.before_result = lambda: setattr(case, "now", case.now + len(executor.batches[-1]) / 1024)
    case.engine.submit([ids(1)] * 8192).result(PATIENCE)
    sizes = [len(batch) for batch in executor.batches]
    assert sizes[0] == first
    # At 1,024 tokens per second, half a second.
    assert depth == 2 or set(sizes[1:-1]) == {512}


RATE = 1_000_000
"""Tokens per second of the executor in `Mixed`: slices are well above LEAST_SLICE_TOKENS."""
LARGE, SMALL = [ids(*range(1, 101))] * 2000, [ids(9)]


class Mixed:
    """An executor with a constant speed, whose engine has seen a large request and then a small one."""

    def __init__(self, make: Callable[..., Case], depth: int, *, check: bool = False) -> None:
        self.executor = FakeExecutor(max_batch_tokens=65_536, max_batch_sentences=65_536, depth=depth)
        self.case = make(self.executor)
        self.executor.before_result = self._pass
        self.collected = 0
        self.engine = self.case.engine
        self.engine.submit(LARGE).result(PATIENCE)
        self.engine.submit_all([request_of(SMALL, is_check=check)])[0].result(PATIENCE)

    def _pass(self) -> None:
        self.case.now += tokens_of(self.executor.batches[self.collected]) / RATE
        self.collected += 1

    def batches_of_a_large_request(self) -> list[int]:
        """Tokens of each."""
        before = len(self.executor.batches)
        self.engine.submit(LARGE).result(PATIENCE)
        return [tokens_of(batch) for batch in self.executor.batches[before:]]


def tokens_of(batch: list[bytes]) -> int:
    return sum(map(len, batch)) // 4


@pytest.mark.parametrize("depth", [1, 2])
def test_beside_a_large_request_a_small_one_waits_for_what_is_launched_and_no_longer(
    make: Callable[..., Case], depth: int
) -> None:
    mixed = Mixed(make, depth)
    mixed.executor.holding.clear()
    mixed.executor.hold()
    large = mixed.engine.submit(LARGE)
    assert mixed.executor.holding.wait(PATIENCE)
    came, launched = mixed.case.now, len(mixed.executor.batches)
    answered: list[float] = []
    small = mixed.engine.submit(SMALL)
    small.add_done_callback(lambda _: answered.append(mixed.case.now))
    mixed.executor.let_go()
    assert len(large.result(PATIENCE)) == len(LARGE)
    assert mixed.executor.batches[launched] == SMALL
    assert answered[0] - came <= MIXED_SLICE_SECONDS + len(SMALL) / RATE + 1e-9


@pytest.mark.parametrize("depth", [1, 2])
def test_slices_end_a_minute_after_the_last_small_request(make: Callable[..., Case], depth: int) -> None:
    mixed = Mixed(make, depth)
    slices, full = mixed.batches_of_a_large_request(), RATE * MIXED_SLICE_SECONDS / depth
    assert all(full - tokens_of(LARGE[:1]) <= tokens <= full for tokens in slices[:-1])
    mixed.case.now += MIXED_SECONDS
    assert mixed.batches_of_a_large_request()[0] > 60_000


def test_a_health_check_makes_no_slices(make: Callable[..., Case]) -> None:
    assert Mixed(make, 2, check=True).batches_of_a_large_request()[0] > 60_000


def test_splits_tells_apart_requests_of_more_than_a_batch(make: Callable[..., Case]) -> None:
    engine = make().engine
    assert not engine.splits([request_of([ids(1, 2, 3, 4, 5)] * 2), request_of([ids(1)])])
    assert engine.splits([request_of([ids(1)]), request_of([ids(1, 2, 3, 4, 5)] * 2 + [ids(1)])])
