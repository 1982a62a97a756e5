"""Attention of tokens to nearby tokens, for sentences of several tiles.

It works as `tiled_attention` does, but skips tiles of keys to which no query of a program attends. Causal attention is
a window without tokens after. Heads may share keys.
"""

import torch
import triton
import triton.language as tl

from tritonembed_engine.kernels.short_attention import sentence_programs

QUERIES, KEYS = 64, 32
"""A program's tile."""

UNLIMITED = 1 << 30
"""A window's side without a limit."""

_LOG2_E = 1.4426950408889634
LOWEST = tl.constexpr(-1e30)


@triton.jit(do_not_specialize=["sentences"])
def _window_attention(  # type: ignore[no-untyped-def]
    qkv,  # [tokens, heads + 2 x key heads, HEAD], rows qkv_stride apart
    out,  # [tokens, heads, HEAD], rows out_stride apart
    cu_seqlens,  # int32 [sentences + 1]
    sentences,
    heads,
    key_heads,
    qkv_stride,
    out_stride,
    before,  # a token attends to this many tokens before it
    after,  # and after it
    scale,  # of the scores, times log2(e)
    QUERIES: tl.constexpr,  # rows of a tile
    KEYS: tl.constexpr,  # columns of a tile
    HEAD: tl.constexpr,
    STAGES: tl.constexpr,  # of the pipeline that loads keys and values
):
    head = tl.program_id(1)
    key_head = head // (heads // key_heads)
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
            column = tl.arange(0, HEAD)
            inside = (row < length)[:, None]
            at_query = (start + row)[:, None] * qkv_stride + head * HEAD + column[None, :]
            queries = tl.load(qkv + at_query, inside, other=0.0)
            at_key = (start + key)[:, None] * qkv_stride + (heads + key_head) * HEAD + column[None, :]
            # Per query: the largest score so far, the sum of the weights under it, and the values mixed by them.
            top = tl.full([QUERIES], float("-inf"), tl.float32)
            total = tl.zeros([QUERIES], tl.float32)
            mixed = tl.zeros([QUERIES, HEAD], tl.float32)
            begin = tl.maximum(first - before, 0) // KEYS * KEYS
            stop = tl.minimum(first + QUERIES + after, length)
            for done in tl.range(begin, stop, KEYS, num_stages=STAGES):
                there = done + key < length
                keys = tl.load(qkv + at_key + done * qkv_stride, there[:, None], other=0.0)
                values = tl.load(qkv + at_key + done * qkv_stride + key_heads * HEAD, there[:, None], other=0.0)
                distance = row[:, None] - (done + key)[None, :]
                seen = there[None, :] & (distance <= before) & (distance >= -after)
                scores = tl.where(seen, tl.dot(queries, tl.trans(keys)), float("-inf"))
                # Not infinite: for a row without any key so far, the differences below would be NaN.
                higher = tl.maximum(tl.maximum(top, tl.max(scores, 1) * scale), LOWEST)
                weights = tl.exp2(scores * scale - higher[:, None])
                fade = tl.exp2(top - higher)
                total = total * fade + tl.sum(weights, 1)
                mixed = tl.dot(weights.to(values.dtype), values, mixed * fade[:, None])
                top = higher
            to = (start + row)[:, None] * out_stride + head * HEAD + column[None, :]
            tl.store(out + to, (mixed / total[:, None]).to(out.dtype.element_ty), inside)
        sentence += tl.num_programs(2)
        start = tl.load(cu_seqlens + tl.minimum(sentence, sentences))


def window_attention(
    qkv: torch.Tensor,
    cu_seqlens: torch.Tensor,
    heads: int,
    key_heads: int,
    longest: int,
    scale: float,
    window: tuple[int, int],
) -> torch.Tensor:
    """Softmax attention within each sentence and window.

    qkv: [tokens, (heads + 2 x key_heads) x head size], queries, keys and values side by side; rows contiguous.
    cu_seqlens: int32 [sentences + 1]. longest: at least the tokens of the longest sentence. window: the numbers of
    tokens before it and after it to which a token attends, or UNLIMITED. Returns [tokens, heads x head size] in the
    type of qkv.
    """
    size = qkv.shape[1] // (heads + 2 * key_heads)
    out = torch.empty((len(qkv), heads * size), dtype=qkv.dtype, device=qkv.device)
    sentences = len(cu_seqlens) - 1
    grid = (triton.cdiv(longest, QUERIES), heads, sentence_programs(sentences, len(qkv), longest))
    _window_attention[grid](
        qkv, out, cu_seqlens, sentences, heads, key_heads, qkv.stride(0), out.stride(0), *window, scale * _LOG2_E,
        QUERIES=QUERIES, KEYS=KEYS, HEAD=size, STAGES=3 if size <= 64 else 2, num_warps=4,
    )  # fmt: skip
    return out


def window_attention_reference(
    qkv: torch.Tensor, cu_seqlens: torch.Tensor, heads: int, key_heads: int, scale: float, window: tuple[int, int]
) -> torch.Tensor:
    """The same in PyTorch, in float32, one sentence at a time."""
    parts = qkv.float().unflatten(1, (heads + 2 * key_heads, -1))
    out = torch.zeros((len(qkv), heads * parts.shape[2]), dtype=torch.float32, device=qkv.device)
    for start, end in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
        q, k, v = parts[start:end].transpose(0, 1).split([heads, key_heads, key_heads])
        k, v = (part.repeat_interleave(heads // key_heads, 0) for part in (k, v))
        row = torch.arange(end - start, device=qkv.device)
        distance = row[:, None] - row[None, :]
        seen = (distance <= window[0]) & (distance >= -window[1])
        scores = (q @ k.transpose(1, 2) * scale).masked_fill(~seen, float("-inf"))
        out[start:end] = (torch.softmax(scores, dim=-1) @ v).transpose(0, 1).flatten(1)
    return out.to(qkv.dtype)
