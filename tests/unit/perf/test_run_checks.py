"""Answers under load: shape, norm, tokens, and a sample compared with vectors known beforehand."""

from dataclasses import replace

import numpy as np
import pytest

from tritonembed_perf.loadgen.checks import SENTENCES, AnswerCheck, make_references, unit_rows
from tritonembed_perf.loadgen.protocols import Answer
from tritonembed_perf.loadgen.requests import PooledRequest

RIGHT = unit_rows(np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32))
CHECK = AnswerCheck(
    8, True, 0.999, make_references([PooledRequest(("a", "b", "c", "d"), 20)], lambda _: RIGHT), (20, 30)
)


def test_a_right_answer_has_no_fault() -> None:
    assert CHECK.find_fault(0, Answer(RIGHT, 20)) == ""
    assert CHECK.find_fault(1, Answer(RIGHT[::-1], None)) == ""


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (Answer(RIGHT[:, :4], 20), "4 dimensions instead of 8"),
        (Answer(RIGHT * 1.1, 20), "norm 1.1"),
        (Answer(RIGHT * np.float32(np.nan), 20), "norm nan"),
        (Answer(RIGHT * 0, 20), "norm 0.0"),
        (Answer(RIGHT, 21), "saw 21 tokens in a request of 20"),
        (Answer(RIGHT[::-1], 20), "cosine"),
        (Answer(-RIGHT, 20), "cosine"),
    ],
)
def test_every_fault_is_reported(answer: Answer, fault: str) -> None:
    assert fault in CHECK.find_fault(0, answer)


def test_vectors_that_are_not_normalised_may_have_any_length_but_0_and_infinity() -> None:
    check = replace(CHECK, normalized=False)
    assert check.find_fault(0, Answer(RIGHT * 7, 20)) == ""
    for factor in (0, np.inf):
        assert "zero or not finite" in check.find_fault(1, Answer(RIGHT * np.float32(factor), 30))


def test_a_wrong_row_among_right_rows_is_found() -> None:
    rows = RIGHT.copy()
    rows[2] = RIGHT[1]
    assert "cosine" in CHECK.find_fault(0, Answer(rows, 20))


def test_the_sample_is_whole_requests_or_the_start_of_a_large_request() -> None:
    asked: list[str] = []

    def embed(texts: "list[str]") -> np.ndarray:
        asked.extend(texts)
        return np.ones((len(texts), 8), np.float32)

    small = make_references([PooledRequest((f"{n}", f"{n}'"), 4) for n in range(100)], embed)
    assert len(asked) == SENTENCES
    assert sorted(small) == list(range(SENTENCES // 2))
    asked.clear()
    large = make_references([PooledRequest(tuple("x" * 200), 400)] * 3, embed)
    assert (len(asked), list(large)) == (SENTENCES, [0])
