"""Token ids from clients: if they can't be embedded, the error names the sentence."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritonembed_engine.errors import InvalidArgument
from tritonembed_engine.token_ids import TokenIdLimits, TokenIds

LIMITS = TokenIdLimits(max_length=8, vocab_size=100)


def ids(*values: int) -> bytes:
    return np.array(values, dtype="<i4").tobytes()


def values(sentences: TokenIds) -> list[list[int]]:
    return [one.tolist() for one in sentences]


@pytest.mark.parametrize(
    "sentences",
    [[ids(0)], [ids(99)], [ids(*range(8))], [ids(1), ids(2, 3), ids(99, 0, 99)]],
)
def test_sentences_within_the_limits_pass(sentences: list[bytes]) -> None:
    assert [ids(*one) for one in values(LIMITS.read(sentences))] == sentences


@pytest.mark.parametrize("index", [0, 1, 4])
@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (b"\x01", "has 1 bytes, not a multiple of 4"),
        (ids(1, 2)[:-1], "has 7 bytes, not a multiple of 4"),
        (b"", "has no tokens"),
        (ids(*[1] * 9), "has 9 tokens, over the model's maximum of 8"),
        (ids(-1), "has an id outside the vocabulary of 0 to 99"),
        (ids(1, -(1 << 31)), "has an id outside the vocabulary of 0 to 99"),
        (ids(1, 100), "has an id outside the vocabulary of 0 to 99"),
        (ids((1 << 31) - 1), "has an id outside the vocabulary of 0 to 99"),
    ],
)
def test_a_wrong_sentence_is_refused_by_its_index_and_limit(wrong: bytes, problem: str, index: int) -> None:
    sentences = [ids(1, 2)] * 5
    sentences[index] = wrong
    with pytest.raises(InvalidArgument) as refused:
        LIMITS.read(sentences)
    assert str(refused.value) == f"token_ids: sentence {index} {problem}"
    assert refused.value.name == "token_ids"


def test_of_two_sentences_outside_the_vocabulary_the_first_is_named() -> None:
    with pytest.raises(InvalidArgument, match="sentence 1 "):
        LIMITS.read([ids(1), ids(-5), ids(500)])


def test_joining_and_lengths_give_the_sentences_back() -> None:
    joined = TokenIds.join([ids(5), ids(6, 7, 8), ids(-1, 1 << 20)])
    assert joined.ids.tolist() == [5, 6, 7, 8, -1, 1 << 20]
    assert joined.lengths.tolist() == [1, 3, 2]
    assert joined.lengths.dtype == joined.ids.dtype == np.int32
    assert (len(joined), joined.tokens) == (3, 6)
    assert values(joined) == [[5], [6, 7, 8], [-1, 1 << 20]]


@pytest.mark.parametrize("outside", [-1, 100, -(1 << 31), (1 << 31) - 1])
def test_a_check_of_many_sentences_finds_an_id_outside_the_vocabulary(outside: int) -> None:
    with pytest.raises(InvalidArgument, match="sentence 1 has an id outside"):
        LIMITS.read([ids(1, 2), ids(3, outside, 4), ids(5)])


def test_no_sentences_are_within_any_limits() -> None:
    """This is a Triton batch in which every request was refused."""
    assert values(LIMITS.read([])) == []


@pytest.mark.parametrize("sentence", [ids(7), ids(1, 2, 7), ids(7, 7)])
def test_an_id_that_the_executor_refuses_is_named_by_its_sentence(sentence: bytes) -> None:
    limits = TokenIdLimits(max_length=8, vocab_size=100, refused_id=7)
    with pytest.raises(InvalidArgument, match="sentence 2 has the padding token"):
        limits.read([ids(1), ids(2, 3), sentence, ids(7)])
    assert values(limits.read([ids(1), ids(6, 8)])) == [[1], [6, 8]]


@given(st.lists(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=5), max_size=4), max_size=5))
def test_requests_that_came_together_are_split_and_joined_without_loss(requests: list[list[list[int]]]) -> None:
    joined = TokenIds.join([ids(*sentence) for request in requests for sentence in request])
    parts = joined.split([len(request) for request in requests])
    assert [values(part) for part in parts if len(part)] == [request for request in requests if request]
    whole = [part for part in parts if len(part)]
    if whole:
        assert values(TokenIds.concatenate(whole)) == values(joined)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=9), st.data())
def test_a_cut_has_its_sentences(lengths: list[int], data: st.DataObject) -> None:
    sentences = [list(range(100 * number, 100 * number + length)) for number, length in enumerate(lengths)]
    start = data.draw(st.integers(0, len(lengths) - 1))
    stop = data.draw(st.integers(start + 1, len(lengths)))
    joined = TokenIds.join([ids(*sentence) for sentence in sentences])
    assert values(joined.cut(start, stop)) == sentences[start:stop]
