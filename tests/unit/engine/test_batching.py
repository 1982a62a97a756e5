"""Batches by token budget."""

import random
from dataclasses import dataclass
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tritonembed_engine.batching import Batcher
from tritonembed_engine.errors import ExecutionFailed
from tritonembed_engine.request import Batch, Piece, Request
from tritonembed_engine.token_ids import TokenIds

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30)


@dataclass(eq=False)
class Labelled(Request):
    name: int = 0


def request(name: int, lengths: list[int], deadline: float | None = None) -> Labelled:
    sentences = [bytes([name % 256, place % 256, 0, 0]) * n for place, n in enumerate(lengths)]
    return Labelled(TokenIds.join(sentences), deadline, name=name)


def name_of(piece: Piece) -> int:
    assert isinstance(piece.request, Labelled)
    return piece.request.name


def names_of(requests: list[Request]) -> list[int]:
    return [one.name for one in requests if isinstance(one, Labelled)]


def take_all(batcher: Batcher, now: float = 0.0) -> list[Batch]:
    batches: list[Batch] = []
    while True:
        batch, _ = batcher.take(now)
        if batch is None:
            return batches
        batches.append(batch)


def check_shape(batch: Batch, max_tokens: int, max_sentences: int) -> None:
    """A batch is within both bounds (except a lone long sentence), and its counts are right."""
    joined = batch.join()
    assert batch.tokens == joined.tokens == joined.lengths.sum()
    assert batch.tokens <= max_tokens or batch.sentences == 1
    assert 1 <= batch.sentences == len(joined) <= max_sentences
    expected = [ids.tolist() for p in batch.pieces for ids in list(p.request.sentences)[p.start : p.stop]]
    assert [ids.tolist() for ids in joined] == expected


@given(st.lists(LENGTHS, max_size=12), st.integers(1, 100), st.integers(1, 20))
def test_every_sentence_is_taken_once_in_order_and_within_the_budget(
    requests: list[list[int]], max_tokens: int, max_sentences: int
) -> None:
    batcher: Batcher = Batcher(max_tokens, max_sentences)
    added = [request(name, lengths) for name, lengths in enumerate(requests)]
    for one in added:
        batcher.add(one)
    taken: dict[int, list[int]] = {one.name: [] for one in added}
    order: list[tuple[int, int]] = []
    for batch in take_all(batcher):
        check_shape(batch, max_tokens, max_sentences)
        for piece in batch.pieces:
            taken[name_of(piece)] += range(piece.start, piece.stop)
            order.append((piece.request.size_class, name_of(piece)))
    assert taken == {one.name: list(range(len(one.sentences))) for one in added}
    for size_class, _ in order:
        same = [name for of, name in order if of == size_class]
        assert same == sorted(same)
    assert batcher.waiting_sentences == 0
    assert not batcher


@given(st.lists(LENGTHS, min_size=1, max_size=12), st.integers(1, 100), st.integers(1, 20))
def test_a_batch_ends_only_if_the_next_sentence_does_not_fit(
    requests: list[list[int]], max_tokens: int, max_sentences: int
) -> None:
    batcher: Batcher = Batcher(max_tokens, max_sentences)
    for name, lengths in enumerate(requests):
        batcher.add(request(name, lengths))
    batches = take_all(batcher)
    for batch, following in pairwise(batches):
        full = batch.sentences == max_sentences
        assert full or batch.tokens + following.pieces[0].request.lengths[following.pieces[0].start] > max_tokens


@given(st.lists(st.tuples(LENGTHS, st.sampled_from(["good", "late", "failed"])), max_size=12), st.randoms())
def test_late_and_failed_requests_are_skipped_and_the_count_returns_to_zero(
    requests: list[tuple[list[int], str]], chance: random.Random
) -> None:
    batcher: Batcher = Batcher(64, 16)
    fates: dict[int, str] = {}
    expired: list[int] = []
    computed: set[int] = set()

    def take() -> Batch | None:
        batch, late = batcher.take(now=10.0)
        expired.extend(names_of(late))
        if batch is not None:
            check_shape(batch, 64, 16)
            computed.update(name_of(piece) for piece in batch.pieces)
        return batch

    for name, (lengths, fate) in enumerate(requests):
        one = request(name, lengths, deadline=10.0 if fate == "late" else 10.5)
        if fate == "failed":
            one.fail(ExecutionFailed("a part of it"))
        fates[name] = fate
        batcher.add(one)
        if chance.random() < 0.3:
            take()
    while take() is not None:
        pass
    assert sorted(expired) == [name for name, fate in fates.items() if fate == "late"]
    assert computed == {name for name, fate in fates.items() if fate == "good"}
    assert batcher.waiting_sentences == 0
    assert not batcher


def test_small_requests_are_merged() -> None:
    batcher: Batcher = Batcher(10, 8)
    for name in range(4):
        batcher.add(request(name, [3]))
    assert [[name_of(p) for p in batch.pieces] for batch in take_all(batcher)] == [[0, 1, 2], [3]]


def test_a_large_request_is_split_and_its_end_shares_a_batch_with_the_next() -> None:
    batcher: Batcher = Batcher(10, 8)
    batcher.add(request(0, [4, 4, 4]))
    batcher.add(request(1, [4, 4]))
    pieces = [[(name_of(p), p.start, p.stop) for p in batch.pieces] for batch in take_all(batcher)]
    assert pieces == [[(0, 0, 2)], [(0, 2, 3), (1, 0, 1)], [(1, 1, 2)]]


def test_a_small_request_gets_in_before_the_rest_of_a_huge_one() -> None:
    batcher: Batcher = Batcher(10, 8)
    batcher.add(request(0, [5] * 100))
    batcher.take(0.0)
    batcher.add(request(1, [2]))
    batch, _ = batcher.take(0.0)
    assert batch is not None
    assert [(name_of(p), p.stop - p.start) for p in batch.pieces] == [(1, 1), (0, 1)]


def test_small_requests_apart_share_no_batch_with_a_huge_one_and_take_turns_with_it() -> None:
    batcher: Batcher = Batcher(10, 8)
    batcher.apart = True
    huge = request(0, [5] * 100)
    batcher.add(huge)
    batcher.take(0.0)
    turns = []
    for _ in range(6):
        batcher.add(request(1, [2]))
        batch, _ = batcher.take(0.0)
        assert batch is not None
        turns.append({name_of(p) for p in batch.pieces})
    assert turns == [{1}, {0}] * 3
    assert huge.taken == 2 + 3 * 2


def test_a_huge_request_keeps_its_turn_if_the_small_one_before_it_came_first() -> None:
    batcher: Batcher = Batcher(10, 8)
    batcher.apart = True
    batcher.add(request(1, [2]))
    batcher.add(request(0, [5] * 100))
    batcher.take(0.0)
    batcher.add(request(1, [2]))
    batch, _ = batcher.take(0.0)
    assert batch is not None
    assert [name_of(p) for p in batch.pieces] == [0]


def test_beside_a_large_batch_a_request_of_many_sentences_is_not_small() -> None:
    batcher: Batcher = Batcher(32_768, 1024)
    batcher.add(request(0, [50] * 64))
    batcher.add(request(1, [50]))
    assert [one.size_class for one in batcher.drain()] == [1, 0]


def test_a_medium_request_gets_in_before_the_rest_of_a_huge_one() -> None:
    batcher: Batcher = Batcher(10, 8)
    batcher.add(request(0, [5] * 100))
    batcher.take(0.0)
    batcher.add(request(1, [5] * 4))
    done = [batch for batch in take_all(batcher) if any(name_of(p) == 1 for p in batch.pieces)]
    assert [batch.tokens for batch in done] == [10] * 4
    assert batcher.waiting_sentences == 0


@given(st.integers(1, 4), st.integers(1, 12), st.booleans())
def test_a_huge_request_has_half_of_the_work_while_small_ones_never_end(small: int, sentence: int, apart: bool) -> None:
    batcher: Batcher = Batcher(10, 8)
    batcher.apart = apart
    huge = request(0, [sentence] * 100)
    batcher.add(huge)
    batches, others = 0, 0
    while huge.taken < len(huge.sentences):
        for _ in range(12):
            batcher.add(request(1, [small]))
        batch, _ = batcher.take(0.0)
        assert batch is not None
        batches += 1
        others += sum(p.request is not huge for p in batch.pieces)
    assert others
    # A sentence that does not fit into the rest of a batch is not split.
    assert others * small <= 100 * sentence + 10


@given(st.lists(LENGTHS, max_size=12), st.integers(1, 100), LENGTHS)
def test_the_tokens_reported_as_ahead_are_never_more_than_those_computed_until_then(
    requests: list[list[int]], max_tokens: int, last: list[int]
) -> None:
    batcher: Batcher = Batcher(max_tokens, 20)
    for name, lengths in enumerate(requests):
        batcher.add(request(name, lengths))
    final = request(999, last)
    told, computed = batcher.tokens_until_done(final.tokens), 0
    batcher.add(final)
    while final.taken < len(final.sentences):
        batch, _ = batcher.take(0.0)
        assert batch is not None
        computed += batch.tokens
    assert sum(last) <= told <= sum(last) + sum(map(sum, requests))
    assert told <= computed


def test_a_request_whose_client_is_gone_is_not_computed_further() -> None:
    batcher: Batcher = Batcher(10, 8)
    one = request(0, [9, 9, 9])
    gone = False
    one.is_abandoned = lambda: gone
    batcher.add(one)
    batch, given_up = batcher.take(0.0)
    assert batch is not None
    assert not given_up
    gone = True
    assert batcher.take(0.0) == (None, [one])
    assert batcher.waiting_sentences == 0


def test_a_smaller_budget_holds_while_it_is_set() -> None:
    batcher: Batcher = Batcher(10, 8)
    batcher.add(request(0, [2] * 12))
    batcher.soft_tokens = 4
    first, _ = batcher.take(0.0)
    batcher.soft_tokens = 100
    second, _ = batcher.take(0.0)
    assert first is not None
    assert second is not None
    assert (first.tokens, second.tokens) == (4, 10)


def test_a_sentence_over_the_budget_goes_alone() -> None:
    batcher: Batcher = Batcher(10, 8)
    batcher.add(request(0, [1, 25, 1]))
    assert [(batch.sentences, batch.tokens) for batch in take_all(batcher)] == [(1, 1), (1, 25), (1, 1)]


def test_a_deadline_passes_at_its_own_moment_and_not_before() -> None:
    batcher: Batcher = Batcher(10, 8)
    batcher.add(request(0, [1], deadline=5.0))
    batcher.add(request(1, [1], deadline=5.5))
    batch, expired = batcher.take(now=5.0)
    assert batch is not None
    assert [name_of(p) for p in batch.pieces] == [1]
    assert names_of(expired) == [0]


def test_what_is_left_of_a_split_request_is_dropped_when_it_fails() -> None:
    batcher: Batcher = Batcher(10, 8)
    one = request(0, [9, 9, 9])
    batcher.add(one)
    batcher.take(0.0)
    assert batcher.waiting_sentences == 2
    one.fail(ExecutionFailed("a part of it"))
    assert batcher.take(0.0) == (None, [])
    assert batcher.waiting_sentences == 0


def test_a_deadline_that_passes_between_two_batches_of_a_request_ends_it() -> None:
    batcher: Batcher = Batcher(10, 8)
    one = request(0, [9, 9, 9], deadline=5.0)
    batcher.add(one)
    batcher.take(now=4.0)
    assert batcher.take(now=5.0) == (None, [one])
    assert batcher.waiting_sentences == 0


def test_draining_gives_up_everything_that_waits() -> None:
    batcher: Batcher = Batcher(10, 8)
    for name in range(3):
        batcher.add(request(name, [6]))
    batcher.take(0.0)
    assert names_of(batcher.drain()) == [1, 2]
    assert batcher.waiting_sentences == 0
    assert batcher.take(0.0) == (None, [])
