"""Attention of one token per sentence, as CLS and last-token pooling need it in a model's last layer.

One program per sentence and head reads the keys and values that the token sees, once. There is one query, so the
products are sums of rows, and the kernel is bound by memory.
"""

import torch
import triton
import triton.language as tl

ELEMENTS = 4096
"""Of a tile of keys."""

_LOG2_E = 1.4426950408889634
LOWEST = tl.constexpr(-1e30)


@triton.jit
def _pooled_attention(  # type: ignore[no-untyped-def]
    q,  # [sentences, heads, HEAD], rows q_stride apart
    kv,  # [tokens, 2 x key heads, HEAD], rows kv_stride apart
    out,  # [sentences, heads, HEAD]
    cu_seqlens,  # int32 [sentences + 1]
    rows,  # int64 [sentences]
    heads,
    key_heads,
    q_stride,
    kv_stride,
    before,  # a token attends to this many tokens before it
    after,  # and after it
    scale,  # of the scores, times log2(e)
    KEYS: tl.constexpr,  # of a tile
    HEAD: tl.constexpr,
):
    head = tl.program_id(0)
    key_head = head // (heads // key_heads)
    sentence = tl.program_id(1)
    row = tl.load(rows + sentence)
    begin = tl.maximum(row - before, tl.load(cu_seqlens + sentence))
    stop = tl.minimum(row + after + 1, tl.load(cu_seqlens + sentence + 1))
    column = tl.arange(0, HEAD)
    query = tl.load(q + sentence * q_stride + head * HEAD + column).to(tl.float32) * scale
    # The largest score so far, the sum of the weights under it, and the values mixed by them.
    top = LOWEST
    total = 0.0
    mixed = tl.zeros([HEAD], tl.float32)
    for first in tl.range(begin, stop, KEYS):
        key = first + tl.arange(0, KEYS)
        there = key < stop
        at = key[:, None] * kv_stride + key_head * HEAD + column[None, :]
        keys = tl.load(kv + at, there[:, None], other=0.0).to(tl.float32)
        values = tl.load(kv + at + key_heads * HEAD, there[:, None], other=0.0).to(tl.float32)
        scores = tl.where(there, tl.sum(keys * query[None, :], 1), float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 0))
        weights = tl.exp2(scores - higher)
        fade = tl.exp2(top - higher)
        total = total * fade + tl.sum(weights, 0)
        mixed = mixed * fade + tl.sum(weights[:, None] * values, 0)
        top = higher
    # Zeros for a sentence without tokens: it pads the rows of a CUDA graph.
    result = mixed / tl.where(total > 0.0, total, 1.0)
    tl.store(out + (sentence * heads + head) * HEAD + column, result.to(out.dtype.element_ty))


def pooled_attention(
    queries: torch.Tensor,
    keys_values: torch.Tensor,
    cu_seqlens: torch.Tensor,
    rows: torch.Tensor,
    heads: int,
    key_heads: int,
    scale: float,
    window: tuple[int, int],
) -> torch.Tensor:
    """Softmax attention of one token per sentence over its sentence and window.

    queries: [sentences, heads x head size]. keys_values: [tokens, 2 x key_heads x head size], keys, then values. Rows
    of both contiguous. cu_seqlens: int32 [sentences + 1]. rows: int64 [sentences], the token of each sentence. window:
    the numbers of tokens before it and after it to which it attends. Returns [sentences, heads x head size] in the type
    of queries; zeros for a sentence without tokens.
    """
    sentences, size = len(rows), queries.shape[1] // heads
    out = torch.empty((sentences, heads * size), dtype=queries.dtype, device=queries.device)
    _pooled_attention[(heads, sentences)](
        queries, keys_values, out, cu_seqlens, rows, heads, key_heads, queries.stride(0), keys_values.stride(0),
        *window, scale * _LOG2_E, KEYS=ELEMENTS // size, HEAD=size, num_warps=4,
    )  # fmt: skip
    return out
