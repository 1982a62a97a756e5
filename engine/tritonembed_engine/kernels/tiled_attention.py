"""Attention for sentences of several tiles: one program per 64 queries of a sentence and head, over all its keys.

The softmax is computed as the keys pass (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018).
FlashAttention 3 takes 128 queries per program. With 64, fewer rows are wasted at the end of a sentence, and more
programs fill the GPU: 168 µs against 250 for 120 sentences of 20 to 512 tokens, 172 against 200 for 64 of 512 (H200).
"""

import torch
import triton
import triton.language as tl

from tritonembed_engine.kernels.short_attention import STORED_AT_ONCE, attention_output, sentence_programs

LONGEST = 512
"""Tokens of the longest sentence that was measured; vLLM's attention serves longer sentences."""

QUERIES = 64
REGISTERS = 128
"""Per thread, for heads of up to 64. With more registers, fewer programs fit a multiprocessor, and the kernel is a
tenth slower (H100)."""

_LOG2_E = 1.4426950408889634


@triton.jit(do_not_specialize=["sentences"])
def _tiled_attention(  # type: ignore[no-untyped-def]
    q,  # [tokens, heads x HEAD], rows qkv_stride apart
    k,  # as q
    v,  # as q
    out,  # [tokens, heads x HEAD], rows out_stride apart
    cu_seqlens,  # int32 [sentences + 1]
    sentences,
    qkv_stride,
    out_stride,
    scale,  # of the scores, times log2(e)
    out_scale,  # the result is divided by it
    QUERIES: tl.constexpr,  # rows of a tile
    KEYS: tl.constexpr,  # columns of a tile
    HEAD: tl.constexpr,
    STAGES: tl.constexpr,  # of the pipeline that loads keys and values
):
    head = tl.program_id(1)
    sentence = tl.program_id(2)
    first = tl.program_id(0) * QUERIES
    end = tl.load(cu_seqlens + sentences)
    start = tl.load(cu_seqlens + sentence)
    # Sentences that only pad the rows of a CUDA graph begin at the end.
    while start < end:
        length = tl.load(cu_seqlens + sentence + 1) - start
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
            # The last tile of keys is masked.
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
        start = tl.load(cu_seqlens + tl.minimum(sentence, sentences))


def tiled_attention(
    qkv: torch.Tensor, cu_seqlens: torch.Tensor, heads: int, longest: int, scale: float, fp8_scale: float | None = None
) -> torch.Tensor:
    """Softmax attention within each sentence, not causal, for any length; as `short_attention`.

    qkv: [tokens, 3 x heads x head size], queries, keys and values side by side; rows contiguous. cu_seqlens: int32
    [sentences + 1]. longest: at least the tokens of the longest sentence. Returns [tokens, heads x head size], in the
    type of qkv or, if fp8_scale is given, divided by it as float8_e4m3fn.
    """
    width = qkv.shape[1] // 3
    q, k, v = qkv[:, :width], qkv[:, width : 2 * width], qkv[:, 2 * width :]
    out = attention_output(qkv, width, fp8_scale)
    out_scale = 1.0 if fp8_scale is None else fp8_scale
    sentences, head = len(cu_seqlens) - 1, width // heads
    grid = (triton.cdiv(longest, QUERIES), heads, sentence_programs(sentences, len(qkv), longest))
    _tiled_attention[grid](
        q, k, v, out, cu_seqlens, sentences, qkv.stride(0), out.stride(0), scale * _LOG2_E, out_scale,
        QUERIES=QUERIES, KEYS=32 if longest < 256 else 64, HEAD=head,
        # Larger heads would need more shared memory than all but the largest GPUs have.
        STAGES=3 if head <= 64 else 2, num_warps=4,
        maxnreg=REGISTERS if head <= 64 else None,
    )  # fmt: skip
    return out
