"""Token ids as a client may send them: what can't be embedded is refused, and the sentence is named."""

import numpy as np
import pytest

from tritonembed_engine.errors import InvalidArgument
from tritonembed_engine.token_ids import check_lengths, check_vocabulary, in_vocabulary, join_ids, lengths_of

VOCABULARY, MAXIMUM = 100, 8


def check(sentences: list[bytes]) -> None:
    """Both checks, in the order that the embedder makes them."""
    check_lengths(sentences, MAXIMUM)
    check_vocabulary(sentences, VOCABULARY)


def ids(*values: int) -> bytes:
    return np.array(values, dtype="<i4").tobytes()


@pytest.mark.parametrize(
    "sentences",
    [[ids(0)], [ids(99)], [ids(*range(8))], [ids(1), ids(2, 3), ids(99, 0, 99)]],
)
def test_sentences_within_the_limits_pass(sentences: list[bytes]) -> None:
    check(sentences)
    assert in_vocabulary(sentences, VOCABULARY)


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
        check(sentences)
    assert str(refused.value) == f"token_ids: sentence {index} {problem}"
    assert refused.value.name == "token_ids"


def test_of_two_sentences_outside_the_vocabulary_the_first_is_named() -> None:
    with pytest.raises(InvalidArgument, match="sentence 1 "):
        check([ids(1), ids(-5), ids(500)])


def test_joining_and_lengths_give_the_sentences_back() -> None:
    sentences = [ids(5), ids(6, 7, 8), ids(-1, 1 << 20)]
    assert join_ids(sentences).tolist() == [5, 6, 7, 8, -1, 1 << 20]
    assert lengths_of(sentences).tolist() == [1, 3, 2]
    assert lengths_of(sentences).dtype == np.int32


@pytest.mark.parametrize("outside", [-1, 100, -(1 << 31), (1 << 31) - 1])
def test_one_look_at_many_sentences_finds_an_id_outside_the_vocabulary(outside: int) -> None:
    assert not in_vocabulary([ids(1, 2), ids(3, outside, 4), ids(5)], VOCABULARY)


def test_no_sentences_are_within_any_vocabulary() -> None:
    """A Triton batch whose every request was refused."""
    assert in_vocabulary([], VOCABULARY)
