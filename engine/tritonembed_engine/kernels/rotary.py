"""Rotary positions (Su et al., "RoFormer", 2021), after RMSNorm of each head's query and key if there is one (Qwen3).

One kernel instead of vLLM's three: it reads and writes queries and keys once.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

ELEMENTS = 1024
"""Elements of a program's tile. Each takes part in one rotation, so a wider tile would only slow down small batches."""

HEAD_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class Rotary:
    """What a layer does to its queries and keys.

    cos_sin: float32 [positions, head size], the cosines of all frequencies, then the sines. gains: float32
    [2, head size], the weights of the norms of queries and of keys, or None without norms. eps: of the norms.
    """

    cos_sin: torch.Tensor
    gains: torch.Tensor | None = None
    eps: float = 0.0


@triton.jit(do_not_specialize=["rows"])
def _rotate(  # type: ignore[no-untyped-def]
    qkv,  # [rows, heads + 2 x key heads, 2 x HALF], rows qkv_stride apart
    positions,  # int [rows]
    cos_sin,  # float32 [positions, 2 x HALF]
    gains,  # [2, 2 x HALF]
    rows,
    heads,
    qkv_stride,
    eps,
    NORM: tl.constexpr,
    ROWS: tl.constexpr,
    HALF: tl.constexpr,
):
    head = tl.program_id(1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, HALF)
    inside = (row < rows)[:, None]
    at = row[:, None] * qkv_stride + head * 2 * HALF + column[None, :]
    left = tl.load(qkv + at, inside, other=0.0).to(tl.float32)
    right = tl.load(qkv + at + HALF, inside, other=0.0).to(tl.float32)
    if NORM:
        gain = gains + tl.where(head < heads, 0, 2 * HALF) + column
        scale = 1.0 / tl.sqrt((tl.sum(left * left, 1) + tl.sum(right * right, 1)) / (2 * HALF) + eps)
        left *= scale[:, None] * tl.load(gain)[None, :]
        right *= scale[:, None] * tl.load(gain + HALF)[None, :]
    position = tl.load(positions + row, row < rows, other=0)
    angle = cos_sin + position[:, None] * (2 * HALF) + column[None, :]
    cos, sin = tl.load(angle), tl.load(angle + HALF)
    tl.store(qkv + at, (left * cos - right * sin).to(qkv.dtype.element_ty), inside)
    tl.store(qkv + at + HALF, (right * cos + left * sin).to(qkv.dtype.element_ty), inside)


def rotate(qkv: torch.Tensor, positions: torch.Tensor, heads: int, key_heads: int, rotary: Rotary) -> None:
    """Norm and rotate the queries and keys in place.

    qkv: [tokens, (heads + 2 x key_heads) x head size], queries, keys and values side by side; rows contiguous.
    positions: int [tokens].
    """
    half = rotary.cos_sin.shape[1] // 2
    rows = max(1, ELEMENTS // (2 * half))
    gains = rotary.cos_sin if rotary.gains is None else rotary.gains
    _rotate[(triton.cdiv(len(qkv), rows), heads + key_heads)](
        qkv, positions, rotary.cos_sin, gains, len(qkv), heads, qkv.stride(0), rotary.eps,
        NORM=rotary.gains is not None, ROWS=rows, HALF=half, num_warps=4,
    )  # fmt: skip


def rotate_reference(
    qkv: torch.Tensor, positions: torch.Tensor, heads: int, key_heads: int, rotary: Rotary
) -> torch.Tensor:
    """The same in PyTorch, in float32, into a new tensor of the type of qkv."""
    size = rotary.cos_sin.shape[1]
    parts = qkv.float().unflatten(1, (-1, size))
    turning = parts[:, : heads + key_heads]
    if rotary.gains is not None:
        scale = torch.rsqrt(turning.square().mean(2, keepdim=True) + rotary.eps)
        queries, keys = rotary.gains.float()
        turning = turning * scale * torch.cat([queries.expand(heads, -1), keys.expand(key_heads, -1)])
    cos, sin = rotary.cos_sin[positions.long()][:, None].chunk(2, dim=2)
    left, right = turning.chunk(2, dim=2)
    turning = torch.cat([left * cos - right * sin, right * cos + left * sin], dim=2)
    return torch.cat([turning, parts[:, heads + key_heads :]], dim=1).flatten(1).to(qkv.dtype)
