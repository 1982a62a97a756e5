"""How the token budget of a batch is chosen."""

from collections.abc import Sequence

import pytest
import torch
from tests.unit.engine.fake_executor import FakeExecutor

from tritonembed_engine.executors.budget import CANDIDATES, choose_budget, measure_budget


@pytest.mark.parametrize(
    ("speeds", "chosen"),
    [
        ({4096: 100.0, 8192: 200.0, 16384: 290.0, 32768: 300.0}, 32768),
        ({4096: 100.0, 8192: 292.0, 16384: 295.0, 32768: 300.0}, 8192),
        ({4096: 300.0, 8192: 200.0, 16384: 100.0}, 4096),
    ],
)
def test_the_smallest_budget_close_to_the_best_is_chosen(speeds: dict[int, float], chosen: int) -> None:
    budget, measured = choose_budget(speeds.__getitem__, list(speeds))
    assert budget == chosen
    assert measured == speeds


def test_sizes_for_which_there_is_no_memory_are_left_out() -> None:
    def rate(tokens: int) -> float:
        if tokens > 8192:
            raise torch.OutOfMemoryError
        return float(tokens)

    assert choose_budget(rate, CANDIDATES) == (8192, {4096: 4096.0, 8192: 8192.0})
    with pytest.raises(torch.OutOfMemoryError):
        choose_budget(rate, [16384])


def test_only_sizes_that_hold_a_sentence_and_fit_the_buffers_are_tried() -> None:
    executor = FakeExecutor(max_batch_tokens=16384, max_batch_sentences=1024)
    budget = measure_budget(executor, max_length=8192)
    sizes = {sum(map(len, batch)) // 4 for batch in executor.batches}
    assert sizes == {8192, 16384}
    assert budget in sizes


def test_a_model_longer_than_every_candidate_keeps_its_executors_budget() -> None:
    executor = FakeExecutor(max_batch_tokens=2 * CANDIDATES[-1])
    assert measure_budget(executor, max_length=2 * CANDIDATES[-1]) == 2 * CANDIDATES[-1]
    assert not executor.batches


def test_a_slow_model_is_measured_for_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("tritonembed_engine.executors.budget.time.monotonic", lambda: now[0])
    monkeypatch.setattr("tritonembed_engine.executors.budget.time.perf_counter", lambda: now[0])
    executor = FakeExecutor(max_batch_tokens=32768, max_batch_sentences=1024)

    def take_long(sentences: Sequence[bytes]) -> None:
        now[0] += 2.0

    executor.before_launch = take_long
    measure_budget(executor, max_length=512)
    # Each candidate runs at least once: a warm-up and one round of two.
    assert len(executor.batches) <= 3 * len(CANDIDATES) + 2
