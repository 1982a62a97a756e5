"""The engine's thread: which request gets which vectors; load, errors and closing."""

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
from tests.fakes.clock import Clock
from tests.unit.engine.fake_executor import PATIENCE, Array, FakeExecutor, ids, request_of, vectors_of

from tritonembed_engine.engine import EmbeddingEngine
from tritonembed_engine.errors import DeadlineExceeded, DeviceLost, EngineDead, ExecutionFailed, OutOfMemory, Overloaded
from tritonembed_engine.request import BatchReport, Request

Made = tuple[EmbeddingEngine, FakeExecutor, Clock]
Make = Callable[..., Made]


@pytest.fixture
def make() -> Iterator[Make]:
    """Engines over fake executors, closed at the end."""
    made: list[Made] = []

    def make_one(
        executor: FakeExecutor | None = None,
        max_waiting_sentences: int = 65536,
        on_batch: Callable[[BatchReport], None] | None = None,
        max_waiting_requests: int = 4096,
    ) -> Made:
        executor, clock = executor or FakeExecutor(), Clock(0.0)
        engine = EmbeddingEngine(
            executor, max_waiting_sentences, clock, on_batch, max_waiting_requests=max_waiting_requests
        )
        made.append((engine, executor, clock))
        return made[-1]

    yield make_one
    for engine, executor, _ in made:
        executor.let_go()
        engine.close()


def get(future: "Future[Array]") -> Array:
    return future.result(PATIENCE)


def occupy(engine: EmbeddingEngine, executor: FakeExecutor) -> "Future[Array]":
    """A request that keeps the engine busy until `let_go`. Requests submitted meanwhile wait."""
    executor.hold()
    future = engine.submit([ids(1)])
    assert executor.holding.wait(PATIENCE)
    return future


def test_the_load_is_what_waits_and_what_is_computed_at_the_measured_pace(make: Make) -> None:
    engine, executor, clock = make(FakeExecutor(max_batch_tokens=10))
    assert engine.load() == (0, 0, 0.0)

    def five_seconds() -> None:
        clock.now += 5.0

    executor.before_result = five_seconds
    get(engine.submit([ids(*range(10))]))
    executor.before_result = lambda: None
    executor.holding.clear()
    first = occupy(engine, executor)
    later = [engine.submit([ids(*range(6)), ids(*range(5))]) for _ in range(3)]
    # 10 tokens took 5 s; one token is computed, 33 wait.
    assert engine.load() == (3, 1, 17.0)
    executor.let_go()
    for future in (first, *later):
        get(future)
    while engine.load() != (0, 0, 0.0):
        time.sleep(0.001)


def test_work_is_short_if_it_and_all_before_it_take_eight_milliseconds_at_the_measured_pace(make: Make) -> None:
    engine, executor, clock = make(FakeExecutor(max_batch_tokens=10))

    def five_milliseconds() -> None:
        clock.now += 0.005

    def tokens(number: int) -> list[Request]:
        return [request_of([ids(*range(number))])]

    assert not engine.is_short(tokens(1))
    executor.before_result = five_milliseconds
    get(engine.submit([ids(*range(10))]))
    executor.before_result = lambda: None
    executor.holding.clear()
    first = occupy(engine, executor)
    later = [engine.submit([ids(*range(6))]), engine.submit([ids(*range(5))])]
    # 10 tokens took 5 ms; one token is computed, 11 wait, so 8 ms have room for 4 more.
    assert engine.is_short(tokens(4))
    assert not engine.is_short(tokens(5))
    executor.let_go()
    for future in (first, *later):
        get(future)


def test_every_request_of_many_threads_gets_its_own_vectors_in_order(make: Make) -> None:
    engine, executor, _ = make(FakeExecutor(max_batch_tokens=50, max_batch_sentences=7))

    def client(seed: int) -> None:
        chance = random.Random(seed)
        for turn in range(25):
            sentences = [
                ids(seed, *[5] * chance.randint(0, 60), turn * 100 + place) for place in range(chance.randint(1, 20))
            ]
            np.testing.assert_array_equal(get(engine.submit(sentences)), vectors_of(sentences))

    with ThreadPoolExecutor(8) as clients:
        list(clients.map(client, range(8)))
    assert len(set(executor.computed)) == len(executor.computed)
    assert any(len({sentence[:4] for sentence in batch}) > 1 for batch in executor.batches)


def test_a_request_larger_than_a_batch_is_put_together_again(make: Make) -> None:
    engine, executor, _ = make()
    sentences = [ids(place, 7, 7) for place in range(11)]
    np.testing.assert_array_equal(get(engine.submit(sentences)), vectors_of(sentences))
    assert len(executor.batches) == 4


def test_requests_that_came_together_share_a_batch(make: Make) -> None:
    engine, executor, _ = make()
    first, second = engine.submit_all([request_of([ids(1)]), request_of([ids(2), ids(3)])])
    np.testing.assert_array_equal(get(first), vectors_of([ids(1)]))
    np.testing.assert_array_equal(get(second), vectors_of([ids(2), ids(3)]))
    assert executor.batches == [[ids(1), ids(2), ids(3)]]


def test_each_request_of_a_batch_keeps_its_own_normalisation(make: Make) -> None:
    engine, executor, _ = make()
    raw, unit = engine.submit_all([request_of([ids(3, 4)]), request_of([ids(3, 4)], normalize=True)])
    expected = vectors_of([ids(3, 4)])
    np.testing.assert_array_equal(get(raw), expected)
    np.testing.assert_allclose(get(unit), expected / np.linalg.norm(expected), rtol=1e-6)
    assert len(executor.batches) == 1


def test_a_request_whose_deadline_passed_before_its_turn_is_never_computed(make: Make) -> None:
    engine, executor, clock = make()
    running = occupy(engine, executor)
    late, early = engine.submit([ids(666)], deadline=5.0), engine.submit([ids(2)], deadline=7.0)
    clock.advance(6.0)
    executor.let_go()
    with pytest.raises(DeadlineExceeded):
        get(late)
    np.testing.assert_array_equal(get(running), vectors_of([ids(1)]))
    np.testing.assert_array_equal(get(early), vectors_of([ids(2)]))
    assert executor.computed == [ids(1), ids(2)]


def test_a_request_over_the_waiting_limit_is_refused_at_once_and_later_requests_are_served(make: Make) -> None:
    engine, executor, _ = make(max_waiting_sentences=4)
    occupy(engine, executor)
    fits, too_much = engine.submit([ids(2)] * 3), engine.submit([ids(3)] * 2)
    assert too_much.done()
    with pytest.raises(Overloaded, match="more than 4 sentences are waiting"):
        get(too_much)
    assert not fits.done()
    smaller = engine.submit([ids(4)])
    executor.let_go()
    assert len(get(fits)) == 3
    assert len(get(smaller)) == 1
    assert len(get(engine.submit([ids(5)] * 4))) == 4
    assert ids(3) not in executor.computed


def test_no_more_requests_wait_than_allowed(make: Make) -> None:
    engine, executor, _ = make(max_waiting_requests=2)
    assert not engine.waiting
    occupy(engine, executor)
    fit = [engine.submit([ids(2)] * 5), engine.submit([ids(3)])]
    assert engine.waiting
    with pytest.raises(Overloaded, match="more than 2 requests are waiting"):
        get(engine.submit([ids(4)]))
    executor.let_go()
    assert [len(get(future)) for future in fit] == [5, 1]
    assert len(get(engine.submit([ids(5)]))) == 1


@pytest.mark.parametrize("where", ["launch", "result"])
def test_an_error_of_one_batch_fails_only_its_requests(make: Make, where: str) -> None:
    engine, executor, _ = make()

    def fail_on_666(sentences: Sequence[bytes]) -> Array:
        if ids(666) in sentences:
            raise RuntimeError("/home/secret/model.bin is broken")
        return vectors_of(sentences)

    if where == "launch":
        executor.before_launch = fail_on_666
    else:
        executor.compute = fail_on_666
    requests = [request_of([ids(1)] * 4), request_of([ids(2)]), request_of([ids(666)]), request_of([ids(3)] * 4)]
    whole, together, broken, after = engine.submit_all(requests)
    for future in (together, broken):
        with pytest.raises(ExecutionFailed) as failed:
            get(future)
        assert str(failed.value) == "a batch failed: RuntimeError"
    # The batch had room for two sentences of the last request, so that request fails too.
    with pytest.raises(ExecutionFailed):
        get(after)
    assert len(get(whole)) == 4
    assert len(get(engine.submit([ids(4)]))) == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_vector_that_is_not_finite_fails_its_own_request_alone(make: Make, bad: float, normalize: bool) -> None:
    engine, executor, _ = make()

    def compute(sentences: Sequence[bytes]) -> Array:
        vectors = vectors_of(sentences)
        vectors[vectors[:, 0] == 7, 1] = bad
        return vectors

    executor.compute = compute
    requests = [
        request_of([ids(1)], normalize=normalize),
        request_of([ids(2), ids(7)], normalize=normalize),
        request_of([ids(3)]),
    ]
    first, failed, last = engine.submit_all(requests)
    with pytest.raises(ExecutionFailed, match="not finite"):
        get(failed)
    np.testing.assert_allclose(np.linalg.norm(get(first)), 1.0 if normalize else np.sqrt(3), rtol=1e-6)
    np.testing.assert_array_equal(get(last), vectors_of([ids(3)]))
    np.testing.assert_array_equal(get(engine.submit([ids(4)])), vectors_of([ids(4)]))
    assert executor.batches[0] == [ids(1), ids(2), ids(7), ids(3)]


def test_a_request_whose_other_batch_was_finite_fails_too(make: Make) -> None:
    engine, executor, _ = make(FakeExecutor(max_batch_tokens=2))

    def compute(sentences: Sequence[bytes]) -> Array:
        vectors = vectors_of(sentences)
        vectors[vectors[:, 0] == 7] = np.nan
        return vectors

    executor.compute = compute
    with pytest.raises(ExecutionFailed, match="not finite"):
        get(engine.submit([ids(1), ids(2), ids(3), ids(7)]))


def test_tokens_that_are_not_pooled_reach_the_executor_sentence_by_sentence(make: Make) -> None:
    engine, executor, _ = make()
    requests = [request_of([ids(1), ids(2)], skip=3), request_of([ids(4)]), request_of([ids(5)], skip=1)]
    for future in engine.submit_all(requests):
        get(future)
    get(engine.submit([ids(6)]))
    assert executor.skips == [[3, 3, 0, 1], None]


def test_the_rest_of_a_failed_request_is_not_computed(make: Make) -> None:
    engine, executor, _ = make(FakeExecutor(max_batch_sentences=1))

    def fail(sentences: Sequence[bytes]) -> None:
        raise RuntimeError

    executor.before_launch = fail
    with pytest.raises(ExecutionFailed):
        get(engine.submit([ids(1), ids(2), ids(3)]))
    executor.before_launch = lambda sentences: None
    get(engine.submit([ids(4)]))
    assert executor.computed == [ids(4)]


def test_an_error_of_the_engines_own_keeps_its_type(make: Make) -> None:
    engine, executor, _ = make()

    def lose_the_device(sentences: Sequence[bytes]) -> Array:
        raise EngineDead("the device is lost")

    executor.compute = lose_the_device
    with pytest.raises(EngineDead, match="the device is lost"):
        get(engine.submit([ids(1)]))


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_an_executor_that_gives_too_few_or_too_many_vectors_is_an_error_and_not_a_wrong_answer(
    make: Make, rows: int
) -> None:
    engine, executor, _ = make()
    executor.compute = lambda sentences: np.ones((rows, 3), dtype=np.float32)
    with pytest.raises(ExecutionFailed):
        get(engine.submit([ids(1), ids(2)]))


def test_the_next_batch_is_launched_before_the_last_is_collected_and_no_more(make: Make) -> None:
    engine, executor, _ = make(FakeExecutor(max_batch_sentences=1))
    get(engine.submit([ids(place) for place in range(4)]))
    assert executor.events == ["launch", "launch", "result", "launch", "result", "launch", "result", "result"]
    assert executor.most_in_flight == executor.depth


def test_a_batch_that_blocks_in_launch_is_answered_before_the_next_batch(make: Make) -> None:
    engine, executor, _ = make(FakeExecutor(max_batch_sentences=1, depth=1))
    get(engine.submit([ids(place) for place in range(3)]))
    assert executor.events == ["launch", "result"] * 3


def test_waiting_requests_are_not_launched_while_the_executor_is_busy(make: Make) -> None:
    engine, executor, _ = make(FakeExecutor(max_batch_sentences=1))
    executor.hold()
    future = engine.submit([ids(place) for place in range(9)])
    assert executor.holding.wait(PATIENCE)
    assert executor.in_flight == executor.depth
    executor.let_go()
    assert len(get(future)) == 9
    assert executor.most_in_flight == executor.depth


def test_closing_answers_running_requests_fails_waiting_ones_at_once_and_ends_the_thread(make: Make) -> None:
    engine, executor, _ = make()
    running = occupy(engine, executor)
    waiting = [engine.submit([ids(2)]), engine.submit([ids(3)] * 20)]
    closing = threading.Thread(target=engine.close)
    closing.start()
    for future in waiting:
        with pytest.raises(EngineDead):
            get(future)
    assert not running.done()
    executor.let_go()
    closing.join(PATIENCE)
    assert not closing.is_alive()
    np.testing.assert_array_equal(get(running), vectors_of([ids(1)]))
    assert executor.computed == [ids(1)]
    assert executor.closed
    assert not engine._thread.is_alive()


def test_closing_fails_the_rest_of_a_request_that_has_begun(make: Make) -> None:
    engine, executor, _ = make(FakeExecutor(max_batch_sentences=1))
    executor.hold()
    begun = engine.submit([ids(place) for place in range(5)])
    assert executor.holding.wait(PATIENCE)
    closing = threading.Thread(target=engine.close)
    closing.start()
    with pytest.raises(EngineDead):
        get(begun)
    executor.let_go()
    closing.join(PATIENCE)
    assert not closing.is_alive()
    assert len(executor.computed) == executor.depth


def test_a_closed_engine_takes_nothing_and_closes_again_without_harm(make: Make) -> None:
    engine, _, _ = make()
    engine.close()
    engine.close()
    with pytest.raises(EngineDead):
        get(engine.submit([ids(1)]))


def test_a_caller_that_gives_up_its_future_does_not_stop_the_engine(make: Make) -> None:
    engine, executor, _ = make()
    occupy(engine, executor)
    given_up, kept = engine.submit([ids(2)]), engine.submit([ids(3)])
    given_up.cancel()
    executor.let_go()
    np.testing.assert_array_equal(get(kept), vectors_of([ids(3)]))
    assert engine._thread.is_alive()


def test_each_batch_is_reported_with_its_size_and_times(make: Make) -> None:
    reports: list[BatchReport] = []
    engine, executor, clock = make(on_batch=reports.append)
    executor.before_launch = lambda sentences: clock.advance(1.0)
    executor.before_result = lambda: clock.advance(10.0)
    requests = [request_of([ids(1, 1)]), request_of([ids(2, 2, 2)] * 3), request_of([ids(3)])]
    for future in engine.submit_all(requests):
        get(future)
    # The first batch, from second 0 to 12, completes the two small requests and begins the large request. The second
    # batch, from 1 to 22, completes the large request, which is answered after the batch's report.
    assert reports == [
        BatchReport(4, 9, 10, 12.0, requests=2, queue_seconds=0.0, request_compute_seconds=12.0 + 12.0),
        BatchReport(1, 3, 10, 21.0, requests=1, queue_seconds=0.0, request_compute_seconds=22.0),
    ]


def test_a_request_is_counted_once_even_if_its_batch_is_computed_in_halves(make: Make) -> None:
    reports: list[BatchReport] = []
    engine, executor, clock = make(FakeExecutor(max_batch_tokens=6, max_batch_sentences=6), on_batch=reports.append)

    def fill(sentences: Sequence[bytes]) -> Array:
        clock.advance(1.0)
        if len(sentences) > 3:
            raise MemoryError
        return vectors_of(sentences)

    executor.compute = fill
    # The first batch is too large. The second, with the last sentences, is collected before the halves of the first.
    get(engine.submit([ids(number) for number in range(8)]))
    assert [report.sentences for report in reports] == [2, 3, 3]
    assert [report.requests for report in reports] == [0, 0, 1]
    whole = reports[-1]
    assert whole.queue_seconds + whole.request_compute_seconds == clock.now


def test_a_request_that_failed_is_not_counted(make: Make) -> None:
    reports: list[BatchReport] = []
    engine, executor, _ = make(FakeExecutor(max_batch_tokens=2, max_batch_sentences=2), on_batch=reports.append)

    def fail_once(sentences: Sequence[bytes]) -> Array:
        if ids(1) in sentences:
            raise RuntimeError
        return vectors_of(sentences)

    executor.compute = fail_once
    with pytest.raises(ExecutionFailed):
        get(engine.submit([ids(number) for number in range(4)]))
    get(engine.submit([ids(9)]))
    assert sum(report.requests for report in reports) == 1


def test_a_batch_that_failed_is_not_reported(make: Make) -> None:
    reports: list[BatchReport] = []
    engine, executor, _ = make(on_batch=reports.append)

    def fail(sentences: Sequence[bytes]) -> Array:
        raise RuntimeError

    executor.compute = fail
    with pytest.raises(ExecutionFailed):
        get(engine.submit([ids(1)]))
    executor.compute = vectors_of
    get(engine.submit([ids(1)]))
    assert [report.sentences for report in reports] == [1]


@pytest.mark.parametrize("where", ["launch", "result"])
def test_a_batch_too_large_for_the_device_is_computed_in_halves_and_nothing_is_lost(make: Make, where: str) -> None:
    engine, executor, _ = make(FakeExecutor(max_batch_tokens=32, max_batch_sentences=32))
    room = 5

    def fill(sentences: Sequence[bytes]) -> Array:
        if sum(map(len, sentences)) // 4 > room:
            raise MemoryError
        return vectors_of(sentences)

    if where == "launch":
        executor.before_launch = fill
    else:
        executor.compute = fill
    requests = [request_of([ids(number, place) for place in range(7)]) for number in range(9)]
    for request, future in zip(requests, engine.submit_all(requests), strict=True):
        np.testing.assert_array_equal(get(future), vectors_of([one.tobytes() for one in request.sentences]))
    before = len(executor.batches)
    sentences = [ids(99, place) for place in range(8)]
    np.testing.assert_array_equal(get(engine.submit(sentences)), vectors_of(sentences))
    # Later batches begin with the budget that fits.
    assert all(len(batch) * 2 <= room for batch in executor.batches[before:])


def test_a_sentence_too_large_for_the_device_fails_alone(make: Make) -> None:
    engine, executor, _ = make()

    def fill(sentences: Sequence[bytes]) -> None:
        if ids(1, 2, 3, 4) in sentences:
            raise MemoryError

    executor.before_launch = fill
    large, small = engine.submit_all([request_of([ids(1, 2, 3, 4)]), request_of([ids(5)])])
    with pytest.raises(OutOfMemory):
        get(large)
    assert len(get(small)) == 1


def test_a_lost_device_fails_everything_at_once_and_is_reported_once(make: Make) -> None:
    deaths = threading.Event()
    executor = FakeExecutor(max_batch_sentences=1)
    engine = EmbeddingEngine(executor, on_death=deaths.set)

    def lose() -> None:
        raise DeviceLost("the GPU is lost to this process")

    executor.hold()
    futures = [engine.submit([ids(number)]) for number in range(5)]
    assert executor.holding.wait(PATIENCE)
    executor.before_result = lose
    executor.let_go()
    for future in futures:
        with pytest.raises(DeviceLost):
            get(future)
    assert deaths.wait(PATIENCE)
    with pytest.raises(DeviceLost):
        get(engine.submit([ids(6)]))
    engine.close()
    assert len(executor.computed) <= executor.depth


@pytest.mark.parametrize("where", ["explain", "on_batch"])
def test_a_defect_of_the_engine_fails_every_waiting_request_and_ends_the_engine(where: str) -> None:
    deaths: list[int] = []

    def broken(*_: object) -> None:
        raise KeyError("not expected")

    executor = FakeExecutor()
    if where == "explain":
        executor.explain = broken  # type: ignore[method-assign,assignment]
        executor.before_result = lambda: broken()
    engine = EmbeddingEngine(
        executor, on_batch=broken if where == "on_batch" else None, on_death=lambda: deaths.append(1)
    )
    executor.hold()
    answers = [engine.submit([ids(n)]) for n in range(6)]
    executor.let_go()
    for answer in answers:
        with pytest.raises(EngineDead, match=r"^the engine failed \(KeyError\)$"):
            answer.result(PATIENCE)
    with pytest.raises(EngineDead):
        engine.submit([ids(1)]).result(PATIENCE)
    engine.close()
    assert deaths == [1]


def test_an_idle_engine_lets_its_executor_rest_once_and_serves_again() -> None:
    executor = FakeExecutor()
    engine = EmbeddingEngine(executor, rest_after=0.01)
    assert executor.rested.wait(PATIENCE)
    np.testing.assert_array_equal(get(engine.submit([ids(1)])), vectors_of([ids(1)]))
    executor.rested.clear()
    assert executor.rested.wait(PATIENCE)
    engine.close()
    assert executor.rests == 2
