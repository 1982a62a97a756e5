"""Which thread does the engine's work: its own thread, or a thread that waits for its result anyway."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tests.unit.engine.fake_executor import PATIENCE, FakeExecutor, ids, request_of, vectors_of

from tritonembed_engine.engine import EmbeddingEngine
from tritonembed_engine.errors import DeadlineExceeded, DeviceLost, EngineDead

HERE = threading.get_ident()


@pytest.fixture
def executor() -> FakeExecutor:
    return FakeExecutor(on_any_thread=True)


@pytest.fixture
def engine(executor: FakeExecutor) -> Iterator[EmbeddingEngine]:
    made = EmbeddingEngine(executor)
    yield made
    executor.let_go()
    made.close()


def test_a_waiting_thread_does_the_work_with_its_batches_overlapped(
    engine: EmbeddingEngine, executor: FakeExecutor
) -> None:
    sentences = [ids(place, 7, 7) for place in range(11)]
    (future,) = engine.submit_all([request_of(sentences)], wait=True)
    assert future.done()
    np.testing.assert_array_equal(future.result(), vectors_of(sentences))
    assert executor.threads == [HERE] * 4
    assert executor.most_in_flight == 2


def test_a_thread_that_does_not_wait_does_not_work(engine: EmbeddingEngine, executor: FakeExecutor) -> None:
    engine.submit([ids(1)]).result(PATIENCE)
    assert HERE not in executor.threads


def test_an_executor_with_a_thread_of_its_own_stays_on_it() -> None:
    executor = FakeExecutor(on_any_thread=False)
    engine = EmbeddingEngine(executor)
    engine.submit_all([request_of([ids(1)])], wait=True)[0].result(PATIENCE)
    engine.close()
    assert HERE not in executor.threads


def test_while_another_thread_works_the_request_is_left_to_it(engine: EmbeddingEngine, executor: FakeExecutor) -> None:
    executor.hold()
    first = engine.submit([ids(1)])
    assert executor.holding.wait(PATIENCE)
    (second,) = engine.submit_all([request_of([ids(2)])], wait=True)
    assert not second.done()
    executor.let_go()
    assert [len(future.result(PATIENCE)) for future in (first, second)] == [1, 1]
    assert HERE not in executor.threads


def test_a_request_that_arrives_meanwhile_is_not_forgotten(engine: EmbeddingEngine, executor: FakeExecutor) -> None:
    """A waiting thread launches requests that arrive while it works. It or the engine's thread collects them."""
    late = []
    executor.before_result = lambda: late or late.append(engine.submit([ids(9, 9)]))
    sentences = [ids(place, 7, 7) for place in range(4)]
    engine.submit_all([request_of(sentences)], wait=True)
    np.testing.assert_array_equal(late[0].result(PATIENCE), vectors_of([ids(9, 9)]))


def test_many_threads_of_both_kinds_get_their_own_vectors(engine: EmbeddingEngine, executor: FakeExecutor) -> None:
    def client(seed: int) -> None:
        for turn in range(100):
            sentences = [ids(seed, turn, place) for place in range(1 + turn % 6)]
            (future,) = engine.submit_all([request_of(sentences)], wait=seed % 2 == 0)
            np.testing.assert_array_equal(future.result(PATIENCE), vectors_of(sentences))

    with ThreadPoolExecutor(8) as clients:
        list(clients.map(client, range(8)))
    assert executor.in_flight == 0


def test_a_lost_device_and_a_closed_engine_raise_on_a_waiting_thread_too(
    engine: EmbeddingEngine, executor: FakeExecutor
) -> None:
    def lose() -> None:
        raise DeviceLost("gone")

    executor.before_result = lose
    (future,) = engine.submit_all([request_of([ids(1)])], wait=True)
    assert isinstance(future.exception(0), DeviceLost)
    engine.close()
    (future,) = engine.submit_all([request_of([ids(1)])], wait=True)
    assert isinstance(future.exception(0), DeviceLost | EngineDead)


def test_a_request_has_its_result_with_and_without_a_future(engine: EmbeddingEngine) -> None:
    expected = vectors_of([ids(3)])
    alone, asked_before, asked_after = (request_of([ids(3)]) for _ in range(3))
    before = asked_before.future
    engine.add([alone, asked_before, asked_after], wait=True)
    for found in (alone.result(), before.result(), asked_before.result(), asked_after.future.result()):
        np.testing.assert_array_equal(found, expected)


def test_the_error_of_a_request_reaches_its_result_and_its_future(engine: EmbeddingEngine) -> None:
    requests = [request_of([ids(3)], deadline=0.0) for _ in range(2)]
    before = requests[0].future
    engine.add(requests, wait=True)
    for ask in (requests[0].result, before.result, requests[1].result, requests[1].future.result):
        with pytest.raises(DeadlineExceeded):
            ask()


def test_whoever_asks_while_the_engine_answers_gets_the_answer(engine: EmbeddingEngine) -> None:
    requests = [request_of([ids(number)]) for number in range(2000)]
    with ThreadPoolExecutor(4) as threads:
        found = [threads.submit(lambda request=request: request.future.result(PATIENCE)) for request in requests]
        for request in requests:
            engine.add([request])
        for number, one in enumerate(found):
            np.testing.assert_array_equal(one.result(PATIENCE), vectors_of([ids(number)]))
