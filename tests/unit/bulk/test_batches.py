"""Batches are always the same ones, in order of length, and vectors come back in the order of the sentences."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritonembed_bulk.batches import BatchRunner, batches_of
from tritonembed_engine.errors import ExecutionFailed, OutOfMemory
from tritonembed_engine.token_ids import TokenIds


class SumExecutor:
    """The vector of a sentence is its length, its first id and the sum of its ids. most: tokens that fit the memory."""

    dimensions, max_batch_tokens, max_batch_sentences, depth = 3, 40, 5, 2

    def __init__(self, most=10**9):
        self.most, self.batches, self.threads, self.in_flight = most, [], set(), 0

    def launch(self, sentences, skips=None):
        self.threads.add(threading.current_thread())
        self.batches.append((sentences.lengths.tolist(), skips))
        if sentences.tokens > self.most:
            raise MemoryError
        self.in_flight += 1
        assert self.in_flight <= self.depth
        return Launched(self, sentences)

    def explain(self, error):
        return OutOfMemory("full") if isinstance(error, MemoryError) else ExecutionFailed("broken")


class Launched:
    def __init__(self, executor, sentences):
        self.executor, self.sentences = executor, sentences

    def result(self):
        self.executor.in_flight -= 1
        ends = np.cumsum(self.sentences.lengths)
        parts = np.split(self.sentences.ids, ends[:-1])
        if any((part == 999).any() for part in parts):
            raise RuntimeError
        return np.array([[len(part), part[0], part.sum()] for part in parts], np.float32)


def sentences(lengths, seed=0):
    ids = np.random.default_rng(seed).integers(0, 100, sum(lengths), dtype=np.int32)
    return TokenIds(ids, np.array(lengths, np.int32))


def expected(given):
    parts = np.split(given.ids, np.cumsum(given.lengths)[:-1])
    return np.array([[len(part), part[0], part.sum()] for part in parts], np.float32)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=60), st.integers(1, 80), st.integers(1, 9))
def test_each_sentence_is_in_one_batch_within_the_budget(lengths, tokens, most):
    lengths = np.array(lengths, np.int32)
    batches = list(batches_of(lengths, tokens, most))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= most
        assert len(batch) == 1 or lengths[batch].sum() <= tokens
    assert (np.diff(lengths[np.concatenate(batches)]) >= 0).all()


def test_vectors_are_in_the_order_of_the_sentences():
    given = sentences([7, 3, 9, 1, 30, 50, 2, 2, 8])
    vectors, busy = BatchRunner(SumExecutor()).compute(given, 0)
    assert np.array_equal(vectors, expected(given))
    assert busy > 0


def test_parts_that_come_together_have_the_batches_that_they_have_alone():
    parts = [sentences([seed + 1, 5, 17, 30, 2, 2], seed) for seed in range(8)]
    alone, together = SumExecutor(), SumExecutor()
    for part in parts:
        BatchRunner(alone).compute(part, 0)
    runner = BatchRunner(together)
    with ThreadPoolExecutor(8) as callers:
        found = list(callers.map(lambda part: runner.compute(part, 0)[0], parts))
    assert all(np.array_equal(vectors, expected(part)) for vectors, part in zip(found, parts, strict=True))
    assert sorted(map(str, together.batches)) == sorted(map(str, alone.batches))
    assert len(together.threads) == 1


def test_a_prompts_tokens_are_skipped_in_each_sentence():
    executor = SumExecutor()
    BatchRunner(executor).compute(sentences([3, 4]), 2)
    assert executor.batches == [([3, 4], [2, 2])]


def test_a_batch_that_does_not_fit_is_computed_in_halves():
    executor = SumExecutor(most=20)
    given = sentences([8, 8, 8, 8, 8])
    vectors, _ = BatchRunner(executor).compute(given, 0)
    assert np.array_equal(vectors, expected(given))
    assert max(sum(lengths) for lengths, _ in executor.batches[1:]) < 40


def test_a_failure_is_of_its_part_alone():
    runner = BatchRunner(SumExecutor())
    broken = TokenIds(np.array([1, 999], np.int32), np.array([2], np.int32))
    with pytest.raises(ExecutionFailed, match="broken"):
        runner.compute(broken, 0)
    given = sentences([4, 5])
    assert np.array_equal(runner.compute(given, 0)[0], expected(given))


def test_a_part_without_sentences_has_no_vectors():
    vectors, _ = BatchRunner(SumExecutor()).compute(TokenIds(np.empty(0, np.int32), np.empty(0, np.int32)), 0)
    assert vectors.shape == (0, 3)
