"""Servers whose vectors may be mixed."""

import numpy as np
import pytest

from tritonembed_manager.router.control.registry import Agreement, Fingerprint, difference

RNG = np.random.default_rng(5)
OURS = RNG.standard_normal((3, 16)).astype(np.float32)
OTHER = RNG.standard_normal((3, 16)).astype(np.float32)
A, B = Fingerprint(OURS), Fingerprint(OTHER)


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
    agreement.settle({"odd": B, "a": A, "b": A})
    assert agreement.judge("a", A) is None
    assert "from those of a" in agreement.judge("odd", B)


def test_of_two_different_servers_the_first_is_right():
    agreement = Agreement()
    agreement.settle({"a": A, "b": B})
    assert agreement.judge("a", A) is None
    assert agreement.judge("b", B) is not None


def test_a_server_that_joins_is_compared_and_later_with_its_own_vectors():
    agreement = Agreement()
    agreement.settle({"a": A})
    assert agreement.judge("b", A) is None
    assert "from those it gave when it joined" in agreement.judge("b", B)
    assert agreement.judge("b", A) is None


def test_other_vectors_are_accepted_after_all_servers_have_left():
    agreement = Agreement()
    agreement.settle({"a": A})
    assert agreement.judge("new", B) is not None
    agreement.leave(["a"])
    assert not agreement.settled
    agreement.settle({"new": B})
    assert agreement.judge("new", B) is None


def test_two_models_are_never_mixed_however_close_their_vectors_are():
    agreement = Agreement()
    agreement.settle({"a": Fingerprint(OURS, "aa-float32"), "b": Fingerprint(OURS, "bb-float32")})
    assert agreement.judge("a", Fingerprint(OURS, "aa-float32")) is None
    reason = agreement.judge("b", Fingerprint(OURS, "bb-float32"))
    assert "embedding space bb-float32 instead of aa-float32" in reason
    assert "when it joined" in agreement.judge("a", Fingerprint(OURS, "bb-float32"))


def test_another_precision_and_an_unknown_space_may_join_if_the_vectors_are_the_same():
    agreement = Agreement()
    agreement.settle({"a": Fingerprint(OURS, "aa-float32")})
    assert agreement.judge("b", Fingerprint(OURS, "aa-16bit")) is None
    assert agreement.judge("old", Fingerprint(OURS)) is None
    assert agreement.judge("odd", Fingerprint(OTHER, "aa-float32")) is not None
