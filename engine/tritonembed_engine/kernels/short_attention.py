"""Attention for sentences that fit one tile: one program per sentence and head, everything in registers.

FlashAttention works in tiles of 128 rows, and a sentence of 50 tokens wastes most of a tile. Here the tile is as long
as the longest sentence of the batch, rounded up to a power of two.
"""

import torch
import triton
import triton.language as tl

LONGEST = 128
"""The most tokens of a sentence."""

WARPS = {16: 1, 32: 1, 64: 4, 128: 8}
"""By a tile's rows: the fastest of 1, 2, 4 and 8 on an H200."""

HEAD_SIZES = (16, 32, 64, 128)
STORED_AT_ONCE = tl.constexpr(8)
"""Elements that a thread stores at once, and so loads at once. For fp8 Triton would choose 16. Queries, keys and values
in 16 bits would then need two accesses, and the kernel would be a quarter slower."""

_LOG2_E = 1.4426950408889634

FEWEST_SENTENCE_PROGRAMS = 32
"""This many sentences of a small batch run at the same time, whatever their length."""


def sentence_programs(sentences: int, tokens: int, longest: int) -> int:
    """The number of programs that share the sentences. Each takes every n-th sentence, n being this number.

    It is twice the number of sentences of `longest` tokens in `tokens`, so a batch of the longest sentences has a
    program per sentence. A CUDA graph has rows for many more, shorter sentences; a program per row would double the
    cost of a batch of long sentences. Kernels are not specialized on the number of sentences: see `rows_per_program`.
    """
    return max(1, min(sentences, max(FEWEST_SENTENCE_PROGRAMS, 2 * -(-tokens // longest))))


@triton.jit(do_not_specialize=["sentences"])
def _short_attention(  # type: ignore[no-untyped-def]
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
    BLOCK: tl.constexpr,  # tokens of the longest sentence or more
    HEAD: tl.constexpr,
):
    head = tl.program_id(0)
    sentence = tl.program_id(1)
    end = tl.load(cu_seqlens + sentences)
    start = tl.load(cu_seqlens + sentence)
    # Sentences that only pad the rows of a CUDA graph begin at the end.
    while start < end:
        length = tl.load(cu_seqlens + sentence + 1) - start
        if length > 0:
            row = tl.arange(0, BLOCK)
            column = tl.arange(0, HEAD)
            inside = (row < length)[:, None]
            at = (start + row)[:, None] * qkv_stride + head * HEAD + column[None, :]
            queries = tl.load(q + at, inside, other=0.0)
            keys = tl.load(k + at, inside, other=0.0)
            values = tl.load(v + at, inside, other=0.0)
            # Softmax over the keys of the sentence.
            scores = tl.dot(queries, tl.trans(keys)) * scale
            scores = tl.where((row < length)[None, :], scores, float("-inf"))
            weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
            total = tl.sum(weights, 1)
            mixed = tl.dot(weights.to(values.dtype), values) / (total * out_scale)[:, None]
            to = (start + row)[:, None] * out_stride + head * HEAD + column[None, :]
            tl.store(tl.max_contiguous(out + to, (1, STORED_AT_ONCE)), mixed.to(out.dtype.element_ty), inside)
        sentence += tl.num_programs(1)
        start = tl.load(cu_seqlens + tl.minimum(sentence, sentences))


def short_attention(
    qkv: torch.Tensor, cu_seqlens: torch.Tensor, heads: int, longest: int, scale: float, fp8_scale: float | None = None
) -> torch.Tensor:
    """Softmax attention within each sentence, not causal.

    qkv: [tokens, 3 x heads x head size], queries, keys and values side by side; rows contiguous. cu_seqlens: int32
    [sentences + 1]. longest: tokens of the longest sentence, at most LONGEST. Returns [tokens, heads x head size], in
    the type of qkv or, if fp8_scale is given, divided by it as float8_e4m3fn.
    """
    width = qkv.shape[1] // 3
    q, k, v = qkv[:, :width], qkv[:, width : 2 * width], qkv[:, 2 * width :]
    out = attention_output(qkv, width, fp8_scale)
    out_scale = 1.0 if fp8_scale is None else fp8_scale
    block = max(16, triton.next_power_of_2(longest))
    sentences = len(cu_seqlens) - 1
    _short_attention[(heads, sentence_programs(sentences, len(qkv), longest))](
        q, k, v, out, cu_seqlens, sentences, qkv.stride(0), out.stride(0), scale * _LOG2_E, out_scale,
        BLOCK=block, HEAD=width // heads, num_warps=WARPS[block],
    )  # fmt: skip
    return out


def attention_output(qkv: torch.Tensor, width: int, fp8_scale: float | None) -> torch.Tensor:
    """An empty [tokens, width]."""
    dtype = qkv.dtype if fp8_scale is None else torch.float8_e4m3fn
    return torch.empty((len(qkv), width), dtype=dtype, device=qkv.device)


def short_attention_reference(qkv: torch.Tensor, cu_seqlens: torch.Tensor, heads: int, scale: float) -> torch.Tensor:
    """The same in PyTorch, in float32, one sentence at a time."""
    width = qkv.shape[1] // 3
    out = torch.zeros((len(qkv), width), dtype=torch.float32, device=qkv.device)
    for start, end in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
        q, k, v = (
            part.reshape(end - start, heads, width // heads).transpose(0, 1)
            for part in qkv[start:end].float().split(width, 1)
        )
        weights = torch.softmax(q @ k.transpose(1, 2) * scale, dim=-1)
        out[start:end] = (weights @ v).transpose(0, 1).reshape(end - start, width)
    return out.to(qkv.dtype)
