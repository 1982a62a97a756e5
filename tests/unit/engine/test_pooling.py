"""Pooling over a flat batch, with the sentences of padding that a CUDA graph has at its end."""

from types import SimpleNamespace

import pytest
import torch

from tritonembed_engine.executors.pooling import pool

HIDDEN = torch.arange(12, dtype=torch.float32).reshape(6, 2)
# Sentences of 1, 3 and 2 tokens, then two of none.
STARTS = torch.tensor([0, 1, 4, 6, 6, 6], dtype=torch.int32)


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ("CLS", [[0.0, 1.0], [2.0, 3.0], [8.0, 9.0]]),
        ("LAST", [[0.0, 1.0], [6.0, 7.0], [10.0, 11.0]]),
        ("MEAN", [[0.0, 1.0], [4.0, 5.0], [9.0, 10.0]]),
    ],
)
def test_each_sentence_gets_its_own_and_padding_reads_nothing_outside(
    pooling: str, expected: list[list[float]]
) -> None:
    model = SimpleNamespace(pooling=pooling, head_dtype=torch.float32, projector=None)
    pooled = pool(model, HIDDEN, STARTS)  # type: ignore[arg-type]
    assert pooled.shape == (5, 2)
    assert pooled[:3].tolist() == expected


def test_a_projector_follows_in_its_own_type() -> None:
    model = SimpleNamespace(
        pooling="CLS", head_dtype=torch.bfloat16, projector=lambda rows: rows @ torch.ones(2, 3, dtype=rows.dtype)
    )
    pooled = pool(model, HIDDEN, STARTS[:4])  # type: ignore[arg-type]
    assert pooled.dtype == torch.float32
    assert pooled[0].tolist() == [1.0, 1.0, 1.0]
