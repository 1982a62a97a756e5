"""The requests of a load: the lengths of their texts, their number, and texts of a file."""

from pathlib import Path

import numpy as np
import pytest

from tritonembed_perf.failures import UsageError
from tritonembed_perf.loadgen.requests import (
    draw_lengths,
    make_requests,
    read_dataset,
    requests_to_prepare,
)


def test_lengths_stay_within_the_requested_range() -> None:
    rng = np.random.default_rng(0)
    assert set(draw_lengths("fixed", 50, 3, 9, rng)) == {50}
    uniform = draw_lengths("uniform", 50, 3, 20_000, rng)
    assert (uniform.min(), uniform.max()) == (3, 50)
    assert uniform.mean() == pytest.approx(26.5, abs=0.5)
    normal = draw_lengths("normal", 50, 3, 20_000, rng)
    assert (normal.min(), normal.max()) == (3, 50)
    assert normal.mean() == pytest.approx(25, abs=0.5)


def test_a_request_knows_the_tokens_of_its_texts() -> None:
    first, second = make_requests(["a", "b", "c", "d", "e"], [1, 2, 3, 4, 5], 2)
    assert (first.texts, first.tokens) == (("a", "b"), 3)
    assert (second.texts, second.tokens) == (("c", "d"), 7)


@pytest.mark.parametrize(
    ("batch_size", "length", "wanted", "prepared"),
    [(1, 50, None, 4096), (64, 50, None, 312), (1024, 512, None, 4), (64, 50, 10, 10), (1, 50, 1, 1)],
)
def test_memory_for_texts_is_bounded_and_small_loads_repeat_nothing(
    batch_size: int, length: float, wanted: int | None, prepared: int
) -> None:
    assert requests_to_prepare(batch_size, length, wanted) == prepared


def test_a_dataset_is_read_like_the_commands_input(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert read_dataset(tmp_path / "texts.jsonl") == ["one", "two"]


@pytest.mark.parametrize(("name", "content"), [("none.txt", None), ("empty.txt", ""), ("texts.jsonl", "{}\n")])
def test_a_dataset_without_texts_is_refused(name: str, content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match="--dataset: "):
        read_dataset(tmp_path / name)
