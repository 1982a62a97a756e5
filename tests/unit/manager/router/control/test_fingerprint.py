"""Servers whose vectors may be mixed."""

import numpy as np
import pytest

from tritonembed_manager.router.control.registry import Agreement, difference

RNG = np.random.default_rng(5)
OURS = RNG.standard_normal((3, 16)).astype(np.float32)
OTHER = RNG.standard_normal((3, 16)).astype(np.float32)


def test_the_same_vectors_in_another_precision_are_the_same():
    assert difference(OURS, OURS.astype(np.float16).astype(np.float32)) is None


@pytest.mark.parametrize(
    ("theirs", "word"),
    [
        (OTHER, "cosine"),
        (OURS[:, :8], "8 dimensions instead of 16"),
        (OURS * np.array([[1], [1], [-1]], np.float32), "cosine -1.0000"),
        (np.zeros_like(OURS), "cosine 0.0000"),
        (np.full_like(OURS, np.nan), "cosine"),
    ],
)
def test_other_vectors_are_detected_even_if_only_one_sentence_differs(theirs, word):
    assert word in difference(OURS, theirs)


def test_at_the_start_the_odd_server_is_refused_even_if_it_answered_first():
    agreement = Agreement()
    agreement.settle({"odd": OTHER, "a": OURS, "b": OURS})
    assert agreement.judge("a", OURS) is None
    assert "from those of a" in agreement.judge("odd", OTHER)


def test_of_two_different_servers_the_first_is_right():
    agreement = Agreement()
    agreement.settle({"a": OURS, "b": OTHER})
    assert agreement.judge("a", OURS) is None
    assert agreement.judge("b", OTHER) is not None


def test_a_server_that_joins_is_compared_and_later_with_its_own_vectors():
    agreement = Agreement()
    agreement.settle({"a": OURS})
    assert agreement.judge("b", OURS) is None
    assert "from those it gave when it joined" in agreement.judge("b", OTHER)
    assert agreement.judge("b", OURS) is None


def test_other_vectors_are_accepted_after_all_servers_have_left():
    agreement = Agreement()
    agreement.settle({"a": OURS})
    assert agreement.judge("new", OTHER) is not None
    agreement.leave(["a"])
    assert not agreement.settled
    agreement.settle({"new": OTHER})
    assert agreement.judge("new", OTHER) is None
