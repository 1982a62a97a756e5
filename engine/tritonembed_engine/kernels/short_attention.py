"""Attention for sentences that fit one tile: one program a sentence and head, everything in registers.

FlashAttention works in tiles of 128 rows, so a sentence of 50 tokens wastes most of one; here the tile is as long as
the longest sentence of the batch, rounded up to a power of two.
"""

import torch
import triton
import triton.language as tl

from tritonembed_engine.kernels.rows import sentence_programs

LONGEST = 128
"""Tokens; longer sentences are FlashAttention's."""

WARPS = {16: 1, 32: 1, 64: 4, 128: 8}
"""By tile; the fastest of 1, 2, 4 and 8 on an H200."""

HEAD_SIZES = (16, 32, 64, 128)
STORED_AT_ONCE = tl.constexpr(8)
"""Elements that a thread stores side by side. Triton loads as many at once as it stores: of the 16 that fit an access
in fp8, queries, keys and values in 16 bits would be loaded in two accesses, a quarter slower in all."""

_LOG2_E = 1.4426950408889634


@triton.jit(do_not_specialize=["sentences"])
def _short_attention(  # type: ignore[no-untyped-def]
    q, k, v, out, starts, sentences, qkv_stride, out_stride, scale, out_scale,
    BLOCK: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    sentence = tl.program_id(1)
    end = tl.load(starts + sentences)
    start = tl.load(starts + sentence)
    # Sentences that only pad a CUDA graph's rows begin at the end.
    while start < end:
        length = tl.load(starts + sentence + 1) - start
        if length > 0:
            row = tl.arange(0, BLOCK)
            column = tl.arange(0, HEAD)
            inside = (row < length)[:, None]
            at = (start + row)[:, None] * qkv_stride + head * HEAD + column[None, :]
            queries = tl.load(q + at, inside, other=0.0)
            keys = tl.load(k + at, inside, other=0.0)
            values = tl.load(v + at, inside, other=0.0)
            scores = tl.dot(queries, tl.trans(keys)) * scale
            scores = tl.where((row < length)[None, :], scores, float("-inf"))
            weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
            total = tl.sum(weights, 1)
            mixed = tl.dot(weights.to(values.dtype), values) / (total * out_scale)[:, None]
            to = (start + row)[:, None] * out_stride + head * HEAD + column[None, :]
            tl.store(tl.max_contiguous(out + to, (1, STORED_AT_ONCE)), mixed.to(out.dtype.element_ty), inside)
        sentence += tl.num_programs(1)
        start = tl.load(starts + tl.minimum(sentence, sentences))


def short_attention(
    qkv: torch.Tensor, starts: torch.Tensor, heads: int, longest: int, scale: float, fp8_scale: float | None = None
) -> torch.Tensor:
    """Softmax attention within each sentence, not causal.

    qkv: [tokens, 3 x heads x head size], queries, keys and values side by side; rows contiguous. starts: int32
    [sentences + 1]. longest: tokens of the longest sentence, at most LONGEST. Gives [tokens, heads x head size], in the
    type of qkv or, where there is an fp8_scale, divided by it as float8_e4m3fn.
    """
    width = qkv.shape[1] // 3
    q, k, v = qkv[:, :width], qkv[:, width : 2 * width], qkv[:, 2 * width :]
    out = attention_output(qkv, width, fp8_scale)
    out_scale = 1.0 if fp8_scale is None else fp8_scale
    block = max(16, triton.next_power_of_2(longest))
    sentences = len(starts) - 1
    _short_attention[(heads, sentence_programs(sentences, len(qkv), longest))](
        q, k, v, out, starts, sentences, qkv.stride(0), out.stride(0), scale * _LOG2_E, out_scale,
        BLOCK=block, HEAD=width // heads, num_warps=WARPS[block],
    )  # fmt: skip
    return out


def attention_output(qkv: torch.Tensor, width: int, fp8_scale: float | None) -> torch.Tensor:
    """An empty [tokens, width]."""
    dtype = qkv.dtype if fp8_scale is None else torch.float8_e4m3fn
    return torch.empty((len(qkv), width), dtype=dtype, device=qkv.device)


def short_attention_reference(qkv: torch.Tensor, starts: torch.Tensor, heads: int, scale: float) -> torch.Tensor:
    """The same in PyTorch, in float32, a sentence at a time."""
    width = qkv.shape[1] // 3
    out = torch.zeros((len(qkv), width), dtype=torch.float32, device=qkv.device)
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        q, k, v = (
            part.reshape(end - start, heads, width // heads).transpose(0, 1)
            for part in qkv[start:end].float().split(width, 1)
        )
        weights = torch.softmax(q @ k.transpose(1, 2) * scale, dim=-1)
        out[start:end] = (weights @ v).transpose(0, 1).reshape(end - start, width)
    return out.to(qkv.dtype)
