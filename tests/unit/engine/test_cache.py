"""The cache of vectors: which sentences are computed, and that every request gets its own vectors all the same."""

import random
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import numpy as np
import pytest
from tests.unit.engine.fake_executor import PATIENCE, Array, FakeExecutor, ids, request_of, vector_of, vectors_of

from tritonembed_engine.cache import Plan, VectorCache
from tritonembed_engine.engine import EmbeddingEngine
from tritonembed_engine.errors import DeadlineExceeded, EngineDead, ExecutionFailed
from tritonembed_engine.ragged import Ragged
from tritonembed_engine.request import BatchReport, CacheReport, Request
from tritonembed_engine.token_ids import Spans

A, B, C = ids(1, 2), ids(3, 4), ids(5, 6)
ENTRY = 300 + 8 + 12
"""Bytes of an entry with two tokens and three dimensions."""
Make = Callable[..., EmbeddingEngine]


@pytest.fixture
def made() -> Iterator[list[EmbeddingEngine]]:
    engines: list[EmbeddingEngine] = []
    yield engines
    for engine in engines:
        engine.close()


@pytest.fixture
def make(made: list[EmbeddingEngine]) -> Make:
    def make_one(executor: FakeExecutor, max_bytes: int = 1 << 20, reports: list[BatchReport] | None = None):
        on_batch = None if reports is None else reports.append
        made.append(EmbeddingEngine(executor, clock=lambda: 0.0, on_batch=on_batch, cache=VectorCache(max_bytes)))
        return made[-1]

    return make_one


def cached(*sentences: bytes, salt: str = "", skip: int = 0, **fields: object) -> Request:
    """A request whose vectors are kept and found."""
    return request_of(
        sentences, keys=[(salt, skip, each, fields.get("adapter")) for each in sentences], skip=skip, **fields
    )


def ask(engine: EmbeddingEngine, *sentences: bytes, **fields: object) -> Array:
    [future] = engine.submit_all([cached(*sentences, **fields)])
    return future.result(PATIENCE)


def occupy(engine: EmbeddingEngine, executor: FakeExecutor) -> None:
    """Keep the engine busy until `let_go`."""
    executor.hold()
    executor.holding.clear()
    engine.submit([ids(9)])
    assert executor.holding.wait(PATIENCE)


@pytest.mark.parametrize("normalize", [False, True])
def test_a_text_that_comes_again_is_not_computed_and_has_the_same_bytes(make: Make, normalize: bool) -> None:
    executor = FakeExecutor()
    engine = make(executor)
    first = ask(engine, A, B, normalize=normalize)
    again = ask(engine, B, A, normalize=normalize)
    assert again.tobytes() == first[::-1].tobytes()
    assert executor.computed == [A, B]


def test_a_vector_of_length_one_and_the_raw_vector_come_from_one_entry(make: Make) -> None:
    executor = FakeExecutor()
    engine = make(executor)
    [raw], [unit] = ask(engine, A), ask(engine, A, normalize=True)
    np.testing.assert_array_equal(raw, vector_of(A))
    np.testing.assert_allclose(unit, raw / np.linalg.norm(raw), rtol=1e-6)
    assert executor.computed == [A]


def test_only_the_new_texts_of_a_request_are_computed_and_rows_keep_their_order(make: Make) -> None:
    executor = FakeExecutor(max_batch_sentences=10, max_batch_tokens=100)
    engine = make(executor)
    ask(engine, B)
    np.testing.assert_array_equal(ask(engine, A, B, C, A, B), vectors_of([A, B, C, A, B]))
    assert executor.batches == [[B], [A, C]]


def test_equal_texts_of_waiting_requests_are_computed_once(make: Make) -> None:
    executor, reports = FakeExecutor(max_batch_sentences=10, max_batch_tokens=100, depth=1), []
    engine = make(executor, reports=reports)
    occupy(engine, executor)
    futures = engine.submit_all([cached(A, B), cached(B), cached(A)])
    executor.let_go()
    for future, sentences in zip(futures, ([A, B], [B], [A]), strict=True):
        np.testing.assert_array_equal(future.result(PATIENCE), vectors_of(sentences))
    assert executor.batches[1:] == [[A, B]]
    assert reports[1].cache == CacheReport(shared=2, misses=2, bytes=2 * ENTRY)
    assert (reports[1].sentences, reports[1].tokens, reports[1].requests) == (2, 4, 3)


def test_a_text_is_computed_once_while_the_batch_before_has_it(make: Make) -> None:
    executor = FakeExecutor(depth=2, max_batch_sentences=2)
    # Nothing is kept: the vector comes from the other batch itself.
    engine = make(executor, max_bytes=1)
    occupy(engine, executor)
    futures = engine.submit_all([cached(A, B), cached(B, C), cached(B)])
    executor.let_go()
    for future, sentences in zip(futures, ([A, B], [B, C], [B]), strict=True):
        np.testing.assert_array_equal(future.result(PATIENCE), vectors_of(sentences))
    assert executor.batches[1:3] == [[A, B], [C]]


def test_a_batch_that_fails_takes_no_request_of_another_batch_along(make: Make) -> None:
    executor = FakeExecutor(depth=2, max_batch_sentences=2)
    engine = make(executor)
    occupy(engine, executor)

    def fail_once(sentences: Sequence[bytes]) -> Array:
        if list(sentences) == [A, B]:
            raise ValueError
        return vectors_of(sentences)

    executor.compute = fail_once
    first, second = engine.submit_all([cached(A, B), cached(B, C)])
    executor.let_go()
    assert isinstance(first.exception(PATIENCE), ExecutionFailed)
    np.testing.assert_array_equal(second.result(PATIENCE), vectors_of([B, C]))


@pytest.mark.parametrize("end", [{"deadline": -1.0}, {"is_abandoned": lambda: True}])
def test_a_request_that_is_given_up_takes_no_equal_one_along(make: Make, end: dict[str, object]) -> None:
    executor = FakeExecutor(depth=1)
    engine = make(executor)
    occupy(engine, executor)
    gone, stays = engine.submit_all([cached(A, **end), cached(A)])
    executor.let_go()
    assert gone.exception(PATIENCE) is not None
    np.testing.assert_array_equal(stays.result(PATIENCE), vectors_of([A]))


def test_other_salts_and_other_prompts_share_nothing(make: Make) -> None:
    executor = FakeExecutor()
    engine = make(executor)
    for request in ({"salt": "a"}, {"salt": "b"}, {"skip": 1}, {"salt": "a"}):
        ask(engine, A, **request)
    assert executor.computed == [A, A, A]


def test_a_request_without_keys_is_computed_anew_and_others_of_its_batch_still_share(make: Make) -> None:
    executor = FakeExecutor(depth=1, max_batch_sentences=10, max_batch_tokens=100)
    engine = make(executor)
    ask(engine, A)
    occupy(engine, executor)
    futures = engine.submit_all([request_of([A]), cached(A), cached(B), cached(B)])
    executor.let_go()
    for future, sentence in zip(futures, (A, A, B, B), strict=True):
        np.testing.assert_array_equal(future.result(PATIENCE), vectors_of([sentence]))
    assert executor.batches[2:] == [[A, B]]


def test_a_prompts_tokens_are_left_out_of_the_right_sentences(make: Make) -> None:
    executor = FakeExecutor(depth=1, max_batch_sentences=10, max_batch_tokens=100)
    engine = make(executor)
    ask(engine, A)
    occupy(engine, executor)
    futures = engine.submit_all([cached(A, B), cached(C, skip=1)])
    executor.let_go()
    for future in futures:
        future.result(PATIENCE)
    assert (executor.batches[-1], executor.skips[-1]) == ([B, C], [0, 1])


def test_a_batch_with_spans_or_outputs_per_token_is_computed_as_it_is(make: Make) -> None:
    executor = FakeExecutor(depth=1, max_batch_sentences=10, max_batch_tokens=100)
    executor.token_outputs = lambda sentences, choices: {
        name: Ragged(np.ones(len(sentences), np.int64), np.ones((len(sentences), 1), np.float32)) for name in choices
    }
    engine = make(executor)
    ask(engine, A)
    for more in ({"spans": Spans.whole([2], 0)}, {"choices": {"sparse": np.ones(2, np.bool_)}}):
        occupy(engine, executor)
        futures = engine.submit_all([cached(A, **more), cached(A, B)])
        executor.let_go()
        for future in futures:
            future.result(PATIENCE)
        assert executor.batches[-1] == [A, A, B]


def test_memory_is_bounded_and_the_least_recently_used_vector_goes_first(make: Make) -> None:
    executor, reports = FakeExecutor(), []
    engine = make(executor, max_bytes=2 * ENTRY, reports=reports)
    ask(engine, A)
    ask(engine, B)
    ask(engine, A)
    ask(engine, C)
    assert engine.cache is not None
    assert (len(engine.cache), engine.cache.bytes) == (2, 2 * ENTRY)
    assert reports[-1].cache == CacheReport(misses=1, evictions=1, bytes=0)
    ask(engine, A)
    ask(engine, B)
    assert executor.computed == [A, B, C, B]


def test_what_is_larger_than_the_cache_is_computed_and_evicts_nothing(make: Make) -> None:
    executor = FakeExecutor(max_batch_tokens=1000)
    engine = make(executor, max_bytes=ENTRY)
    ask(engine, A)
    ask(engine, ids(*range(900)))
    ask(engine, A)
    assert executor.computed == [A, ids(*range(900))]


def test_the_memory_of_entries_is_what_is_counted() -> None:
    chance = np.random.default_rng(7)
    tracemalloc.start()
    try:
        cache, before = VectorCache(1 << 30), tracemalloc.get_traced_memory()[0]
        for _ in range(100):
            plan = Plan([("", 0, chance.bytes(40), None) for _ in range(64)])
            for number, key in enumerate(plan.keys):
                plan.computed.append(number)
                plan.places[key] = number
            plan.fill(np.zeros((64, 384), np.float32))
            cache.keep(plan)
        del plan, key
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(cache) == 6400
    assert 0.9 * cache.bytes < used < cache.bytes


def test_a_vector_that_is_not_finite_is_not_kept(make: Make) -> None:
    executor = FakeExecutor()
    engine = make(executor)
    executor.compute = lambda sentences: np.full((len(sentences), 3), np.nan, np.float32)
    with pytest.raises(ExecutionFailed):
        ask(engine, A)
    executor.compute = vectors_of
    np.testing.assert_array_equal(ask(engine, A), vectors_of([A]))


def test_a_batch_that_is_too_large_for_the_device_is_computed_in_halves_with_its_duplicates(make: Make) -> None:
    executor = FakeExecutor(max_batch_sentences=10, max_batch_tokens=100)
    engine = make(executor)

    def few(sentences: Sequence[bytes]) -> None:
        if len(sentences) > 1:
            raise MemoryError

    executor.before_launch = few
    np.testing.assert_array_equal(ask(engine, A, B, A, B), vectors_of([A, B, A, B]))
    assert executor.computed == [A, B]


def test_a_closed_engine_answers_nothing(make: Make) -> None:
    engine = make(FakeExecutor())
    ask(engine, A)
    engine.close()
    with pytest.raises(EngineDead):
        ask(engine, A)


def test_a_deadline_that_passed_counts_for_what_has_to_be_computed(make: Make) -> None:
    engine = make(FakeExecutor())
    ask(engine, A)
    with pytest.raises(DeadlineExceeded):
        ask(engine, A, B, deadline=0.0)


def test_every_field_of_a_request_that_changes_its_vectors_is_in_the_keys_or_forbids_them() -> None:
    """A new field fails here: if a vector depends on it, it has to be in the keys that replica.py makes."""
    in_keys, never_kept, applied_to_entries = {"sentences", "skip", "adapter"}, {"spans", "choices"}, {"normalize"}
    answer = {"answer", "error", "done", "placed", "vectors", "token_outputs", "parts"}
    progress = {"arrived", "launched", "order", "size_class", "taken", "reported"}
    others = {"deadline", "is_abandoned", "is_check", "keys", "lengths", "tokens"}
    known = in_keys | never_kept | applied_to_entries | answer | progress | others
    assert {field.name for field in fields(Request)} == known


@pytest.mark.parametrize(("depth", "max_bytes"), [(1, 1), (2, 1), (3, 4 * ENTRY), (3, 1 << 20)])
def test_every_request_of_many_threads_gets_its_own_vectors_in_order(make: Make, depth: int, max_bytes: int) -> None:
    executor = FakeExecutor(max_batch_tokens=50, max_batch_sentences=7, depth=depth, on_any_thread=depth == 3)
    engine = make(executor, max_bytes=max_bytes)

    def client(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(40):
            sentences = [ids(chance.randint(0, 9), *[5] * chance.randint(0, 3)) for _ in range(chance.randint(1, 12))]
            request = cached(*sentences, salt=str(chance.randint(0, 1)))
            [future] = engine.submit_all([request], wait=chance.random() < 0.5)
            np.testing.assert_array_equal(future.result(PATIENCE), vectors_of(sentences))

    with ThreadPoolExecutor(8) as clients:
        list(clients.map(client, range(8)))
    assert engine.cache is not None
    assert engine.cache.bytes <= max_bytes
