"""Attention for sentences of several tiles: a program for 64 queries of a sentence and head, over its keys in turn.

The softmax is computed as the keys pass (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018).
FlashAttention 3 takes 128 queries a program; with 64 fewer rows are wasted at a sentence's end and more programs fill
the GPU: 168 µs against 250 for 120 sentences of 20 to 512 tokens, 172 against 200 for 64 of 512, on an H200.
"""

import torch
import triton
import triton.language as tl

from tritonembed_engine.kernels.rows import sentence_programs
from tritonembed_engine.kernels.short_attention import STORED_AT_ONCE, attention_output

LONGEST = 512
"""Tokens that were measured; longer sentences are FlashAttention's."""

QUERIES = 64
REGISTERS = 128
"""Of a thread, for heads of 64 and less: with more, fewer programs fit a multiprocessor, and a tenth of the speed is
lost (H100)."""

_LOG2_E = 1.4426950408889634


@triton.jit(do_not_specialize=["sentences"])
def _tiled_attention(  # type: ignore[no-untyped-def]
    q, k, v, out, starts, sentences, qkv_stride, out_stride, scale, out_scale,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, HEAD: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    sentence = tl.program_id(2)
    first = tl.program_id(0) * QUERIES
    end = tl.load(starts + sentences)
    start = tl.load(starts + sentence)
    # Sentences that only pad a CUDA graph's rows begin at the end.
    while start < end:
        length = tl.load(starts + sentence + 1) - start
        if first < length:
            row = first + tl.arange(0, QUERIES)
            key = tl.arange(0, KEYS)
            column = head * HEAD + tl.arange(0, HEAD)
            inside = (row < length)[:, None]
            queries = tl.load(q + (start + row)[:, None] * qkv_stride + column[None, :], inside, other=0.0)
            at = (start + key)[:, None] * qkv_stride + column[None, :]
            # Per query: the largest score so far, the sum of the weights under it, and the values mixed by them.
            top = tl.full([QUERIES], float("-inf"), tl.float32)
            total = tl.zeros([QUERIES], tl.float32)
            mixed = tl.zeros([QUERIES, HEAD], tl.float32)
            whole = length // KEYS * KEYS
            for done in tl.range(0, whole, KEYS, num_stages=STAGES):
                keys = tl.load(k + at + done * qkv_stride)
                values = tl.load(v + at + done * qkv_stride)
                scores = tl.dot(queries, tl.trans(keys))
                higher = tl.maximum(top, tl.max(scores, 1) * scale)
                weights = tl.exp2(scores * scale - higher[:, None])
                fade = tl.exp2(top - higher)
                total = total * fade + tl.sum(weights, 1)
                mixed = tl.dot(weights.to(values.dtype), values, mixed * fade[:, None])
                top = higher
            if whole < length:
                there = whole + key < length
                keys = tl.load(k + at + whole * qkv_stride, there[:, None], other=0.0)
                values = tl.load(v + at + whole * qkv_stride, there[:, None], other=0.0)
                scores = tl.where(there[None, :], tl.dot(queries, tl.trans(keys)), float("-inf"))
                higher = tl.maximum(top, tl.max(scores, 1) * scale)
                weights = tl.exp2(scores * scale - higher[:, None])
                fade = tl.exp2(top - higher)
                total = total * fade + tl.sum(weights, 1)
                mixed = tl.dot(weights.to(values.dtype), values, mixed * fade[:, None])
            to = (start + row)[:, None] * out_stride + column[None, :]
            result = (mixed / (total * out_scale)[:, None]).to(out.dtype.element_ty)
            tl.store(tl.max_contiguous(out + to, (1, STORED_AT_ONCE)), result, inside)
        sentence += tl.num_programs(2)
        start = tl.load(starts + tl.minimum(sentence, sentences))


def tiled_attention(
    qkv: torch.Tensor, starts: torch.Tensor, heads: int, longest: int, scale: float, fp8_scale: float | None = None
) -> torch.Tensor:
    """Softmax attention within each sentence, not causal: what `short_attention` gives, for any length.

    qkv: [tokens, 3 x heads x head size], queries, keys and values side by side; rows contiguous. starts: int32
    [sentences + 1]. longest: at least the tokens of the longest sentence. Gives [tokens, heads x head size], in the
    type of qkv or, where there is an fp8_scale, divided by it as float8_e4m3fn.
    """
    width = qkv.shape[1] // 3
    q, k, v = qkv[:, :width], qkv[:, width : 2 * width], qkv[:, 2 * width :]
    out = attention_output(qkv, width, fp8_scale)
    out_scale = 1.0 if fp8_scale is None else fp8_scale
    sentences, head = len(starts) - 1, width // heads
    grid = (triton.cdiv(longest, QUERIES), heads, sentence_programs(sentences, len(qkv), longest))
    _tiled_attention[grid](
        q, k, v, out, starts, sentences, qkv.stride(0), out.stride(0), scale * _LOG2_E, out_scale,
        QUERIES=QUERIES, KEYS=32 if longest < 256 else 64, HEAD=head,
        # Larger heads would need more shared memory than all but the largest GPUs have.
        STAGES=3 if head <= 64 else 2, num_warps=4,
        maxnreg=REGISTERS if head <= 64 else None,
    )  # fmt: skip
    return out
