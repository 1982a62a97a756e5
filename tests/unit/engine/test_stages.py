"""Batches keep their own results while launches fail: the GPU executor's code with a forward pass for the CPU."""

import weakref
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.unit.engine.fake_executor import ids

from tritonembed_engine.executors import cuda_direct
from tritonembed_engine.executors.adapters import Adapters
from tritonembed_engine.executors.cuda_direct import CudaDirectExecutor
from tritonembed_engine.executors.flat_batch import Inputs, Stage, Stages, packed_size
from tritonembed_engine.executors.pooling import Pooler
from tritonembed_engine.executors.token_heads import TokenHeads
from tritonembed_engine.kernels.install import Kernels
from tritonembed_engine.model.modules import Pooling
from tritonembed_engine.model.steps import Steps
from tritonembed_engine.token_ids import TokenIds

ROWS, TOKENS = 4, 16


class FakeEvent:
    def record(self) -> None: ...

    def synchronize(self) -> None: ...


class FirstIds:
    """A captured graph whose vectors are the first token id of each sentence."""

    bucket = SimpleNamespace(tokens=TOKENS, rows=ROWS + TOKENS, longest=TOKENS, holds=lambda *_: True)
    failing = False

    def __init__(self, buffer: torch.Tensor) -> None:
        self._buffer = buffer

    def replay(self) -> torch.Tensor:
        if self.failing:
            raise RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")
        starts = self._buffer[: self.bucket.rows + 1]
        first = self._buffer[2 * self.bucket.rows + 1 :]
        return first[starts[:-1].clamp_max(TOKENS - 1).long()].float().reshape(-1, 1)


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> CudaDirectExecutor:
    for name in ("Event", "Stream"):
        monkeypatch.setattr(torch.cuda, name, lambda **_: FakeEvent())
    made = object.__new__(CudaDirectExecutor)
    rows = ROWS + TOKENS
    made._buffer = torch.zeros(packed_size(rows, TOKENS), dtype=torch.int32)
    made._stages = Stages(Stage(rows, TOKENS, 1) for _ in range(made.depth))
    made._padding_id = None
    made.adapters = Adapters(torch.nn.Module(), torch.float32, torch.device("cpu"))
    made._kernels = Kernels()
    made._compute = made._copy = None  # type: ignore[assignment]
    made.graphs = [FirstIds(made._buffer)]  # type: ignore[list-item]
    return made


def answer(pending: cuda_direct.Pending) -> Sequence[float]:
    return pending.result()[:, 0].tolist()  # type: ignore[no-any-return]


def test_batches_in_flight_keep_their_answers_though_launches_between_them_fail(executor: CudaDirectExecutor) -> None:
    first = executor.launch(TokenIds.join([ids(1, 9), ids(2)]))
    executor.graphs[0].failing = True  # type: ignore[attr-defined]
    for _ in range(5):
        with pytest.raises(RuntimeError):
            executor.launch(TokenIds.join([ids(7)]))
    executor.graphs[0].failing = False  # type: ignore[attr-defined]
    second = executor.launch(TokenIds.join([ids(3, 9, 9)]))
    assert answer(first) == [1, 2]
    assert answer(second) == [3]


def test_every_stage_is_returned_even_if_its_result_fails(
    executor: CudaDirectExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(_: FakeEvent) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(FakeEvent, "synchronize", lose)
    for _ in range(5):
        pending = executor.launch(TokenIds.join([ids(1)]))
        with pytest.raises(RuntimeError):
            pending.result()
    monkeypatch.undo()
    np.testing.assert_array_equal(executor.launch(TokenIds.join([ids(4)])).result(), [[4]])


def test_an_answer_that_nobody_collects_does_not_free_its_pinned_memory(executor: CudaDirectExecutor) -> None:
    """On a lost GPU, freeing it would end the process before all requests have their error."""
    pending = executor.launch(TokenIds.join([ids(1)]))
    stage = weakref.ref(pending._stage)  # type: ignore[attr-defined]
    del pending
    assert stage() is not None


class RowsForward:
    """Hidden states whose values are the numbers of their tokens; it notes which rows were asked for."""

    def __init__(self) -> None:
        self.rows: list[list[int] | None] = []

    def __call__(self, inputs: Inputs, longest: int, rows: torch.Tensor | None = None) -> torch.Tensor:
        self.rows.append(None if rows is None else rows.tolist())
        every = torch.arange(len(inputs.ids), dtype=torch.float16)[:, None]
        return every if rows is None else every[rows]


@pytest.mark.parametrize(
    ("pooling", "rows", "pooled"),
    [
        (Pooling.CLS, [0, 1, 8, 57, 57], [0, 1, 8, 57, 57]),
        (Pooling.LAST_TOKEN, [0, 7, 57, 57, 57], [0, 7, 57, 57, 57]),
        (Pooling.MEAN, None, [0, 4, 32.5, 0, 0]),
    ],
)
def test_the_last_layer_computes_the_tokens_that_are_pooled(
    executor: CudaDirectExecutor,
    monkeypatch: pytest.MonkeyPatch,
    pooling: Pooling,
    rows: list[int] | None,
    pooled: list[float],
) -> None:
    """Of sentences of 1, 7 and 50 tokens, and of two empty ones, which a CUDA graph has."""
    asked = RowsForward()
    monkeypatch.setattr(executor, "_forward", asked)
    executor._pooler, executor._heads = Pooler([pooling], Steps(())), TokenHeads.none()
    executor._kernels.computes_rows = True
    inputs = Inputs(torch.zeros(packed_size(5, 58), dtype=torch.int32), 5, 58)
    inputs.cu_seqlens.copy_(torch.tensor([0, 1, 8, 58, 58, 58]))
    assert executor._run(inputs, 50)[:, 0].tolist() == pooled
    assert asked.rows == [rows]


@pytest.mark.parametrize("why", ["kernels", "skips", "adapter", "heads", "poolings"])
def test_the_last_layer_computes_every_token_if_more_than_the_pooled_ones_are_read(
    executor: CudaDirectExecutor, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    asked = RowsForward()
    monkeypatch.setattr(executor, "_forward", asked)
    poolings = [Pooling.CLS] * (2 if why == "poolings" else 1)
    executor._pooler, executor._heads = Pooler(poolings, Steps(())), TokenHeads.none()
    executor._kernels.computes_rows = why != "kernels"
    inputs = Inputs(torch.zeros(packed_size(2, 4), dtype=torch.int32), 2, 4)
    inputs.cu_seqlens.copy_(torch.tensor([0, 1, 4]))
    if why == "heads":
        monkeypatch.setattr(TokenHeads, "names", ["sparse"])
        executor._states = torch.zeros(4, 1)
    begins = torch.tensor([0, 2]) if why == "skips" else None
    vectors = executor._run(inputs, 3, begins, every_token=why == "adapter")
    assert vectors[:, 0].tolist() == ([0, 2] if why == "skips" else [0, 1])
    assert asked.rows == [None]
