"""Mean and maximum over the tokens of each sentence, in float32: one read of [tokens, columns]."""

import torch
import triton
import triton.language as tl

COLUMNS = 128
ROWS = 32
"""A program's tile. It is narrow, so that a few long sentences are enough programs to fill a GPU."""


@triton.jit
def _mean_pool(  # type: ignore[no-untyped-def]
    hidden,  # [tokens, width], rows stride apart
    cu_seqlens,  # int32 [sentences + 1]
    out,  # float32 [sentences, width]
    stride,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    sentence = tl.program_id(0)
    start = tl.load(cu_seqlens + sentence)
    length = tl.load(cu_seqlens + sentence + 1) - start
    row = tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([COLUMNS], tl.float32)
    for done in tl.range(0, length, ROWS, num_stages=3):
        inside = (done + row < length)[:, None] & (column < width)[None, :]
        at = (start + done + row)[:, None] * stride + column[None, :]
        total += tl.sum(tl.load(hidden + at, inside, other=0.0).to(tl.float32), 0)
    tl.store(out + sentence * width + column, total / tl.maximum(length, 1).to(tl.float32), column < width)


def mean_pool(hidden: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
    """hidden: [tokens, width], rows contiguous, any float type. cu_seqlens: int32 [sentences + 1].

    Returns float32 [sentences, width]; zeros for a sentence without tokens. Its reference is `pooling.segment_mean`.
    """
    sentences, width = len(cu_seqlens) - 1, hidden.shape[1]
    out = torch.empty((sentences, width), dtype=torch.float32, device=hidden.device)
    _mean_pool[(sentences, triton.cdiv(width, COLUMNS))](
        hidden, cu_seqlens, out, hidden.stride(0), width, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4
    )
    return out


@triton.jit
def _max_pool(  # type: ignore[no-untyped-def]
    values,  # [tokens, columns], rows stride apart
    cu_seqlens,  # int32 [sentences + 1]
    out,  # float32 [sentences, columns], rows out_stride apart
    stride,
    out_stride,
    columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    sentence = tl.program_id(0)
    start = tl.load(cu_seqlens + sentence)
    length = tl.load(cu_seqlens + sentence + 1) - start
    row = tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    largest = tl.full([COLUMNS], float("-inf"), tl.float32)
    # A maximum alone would drop NaN.
    broken = tl.zeros([COLUMNS], tl.int32)
    for done in tl.range(0, length, ROWS, num_stages=3):
        inside = (done + row < length)[:, None] & (column < columns)[None, :]
        at = (start + done + row)[:, None] * stride + column[None, :]
        value = tl.load(values + at, inside, other=float("-inf")).to(tl.float32)
        broken += tl.sum((value != value).to(tl.int32), 0)
        largest = tl.maximum(largest, tl.max(value, 0))
    largest = tl.where(broken > 0, float("nan"), tl.where(length > 0, largest, 0.0))
    tl.store(out + sentence * out_stride + column, largest, column < columns)


def max_pool(values: torch.Tensor, cu_seqlens: torch.Tensor, out: torch.Tensor) -> None:
    """Write the largest values to `out`: zeros for a sentence without tokens, NaN if a value is NaN.

    values: [tokens, columns], rows contiguous, any float type. cu_seqlens: int32 [sentences + 1]. out: float32
    [sentences, columns], rows contiguous.
    """
    sentences, columns = out.shape
    _max_pool[(sentences, triton.cdiv(columns, COLUMNS))](
        values, cu_seqlens, out, values.stride(0), out.stride(0), columns, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4
    )


def max_pool_reference(values: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
    """The same in PyTorch, into a new tensor."""
    return torch.segment_reduce(values.float(), "max", lengths=cu_seqlens.diff().long(), initial=None, unsafe=True)
