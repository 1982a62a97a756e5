"""LayerNorm in one pass, fused with the step before it (a residual add, BERT's embeddings) and after it (fp8).

Each program normalizes a few whole rows: every row is read once and written once. Sums are in float32.
"""

import torch
import triton
import triton.language as tl

from tritonembed_engine.token_ids import ID_MASK, TYPE_BIT

ELEMENTS_PER_PROGRAM = 4096
"""Enough bytes in flight per program to reach the memory's speed, few enough to stay in registers."""


def rows_per_program(block: int) -> int:
    """block: a row's width, rounded up to a power of two.

    Kernels are not specialized on the number of rows (`do_not_specialize`). Otherwise the first batch that is not a
    multiple of 16 would compile them again while requests wait.
    """
    return max(1, ELEMENTS_PER_PROGRAM // block)


@triton.jit
def _layer_norm(  # type: ignore[no-untyped-def]
    value,  # float32 [ROWS, BLOCK], 0 outside of the rows and the width
    inside,  # bool [ROWS, BLOCK]
    column,  # int [BLOCK]
    weight,  # [width]
    bias,  # [width]
    width,
    eps,
):
    """float32 [ROWS, BLOCK]."""
    mean = tl.sum(value, 1) / width
    centred = tl.where(inside, value - mean[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / width + eps)
    gain = tl.load(weight + column, column < width, other=0.0).to(tl.float32)
    shift = tl.load(bias + column, column < width, other=0.0).to(tl.float32)
    return centred * scale[:, None] * gain[None, :] + shift[None, :]


@triton.jit(do_not_specialize=["rows"])
def _add_layer_norm(  # type: ignore[no-untyped-def]
    x,  # [rows, width]
    residual,  # [rows, width]
    weight,  # [width]
    bias,  # [width]
    out,  # [rows, width]
    summed,  # if SUM: [rows, width], of x + residual
    quantized,  # if QUANTIZE: fp8 [rows, width], of the result
    rows,
    width,
    eps,
    inverse,  # 1 / scale of `quantized`
    SUM: tl.constexpr,
    QUANTIZE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    at = row[:, None] * width + column[None, :]
    value = tl.load(x + at, inside, other=0.0).to(tl.float32)
    value += tl.load(residual + at, inside, other=0.0).to(tl.float32)
    if SUM:
        tl.store(summed + at, value.to(summed.dtype.element_ty), inside)
    result = _layer_norm(value, inside, column, weight, bias, width, eps)
    tl.store(out + at, result.to(out.dtype.element_ty), inside)
    if QUANTIZE:
        tl.store(quantized + at, (result * inverse).to(quantized.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["rows"])
def _embed_layer_norm(  # type: ignore[no-untyped-def]
    ids,  # int [rows]
    positions,  # int [rows]
    word_embeddings,  # [vocabulary, width]
    position_embeddings,  # [positions, width]
    token_types,  # [types, width]
    weight,  # [width]
    bias,  # [width]
    out,  # [rows, width]
    rows,
    width,
    first_position,
    eps,
    BIT: tl.constexpr,
    MASK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    marked = tl.load(ids + row, row < rows, other=0)
    word, kind = marked & MASK, marked >> BIT
    position = tl.load(positions + row, row < rows, other=0) + first_position
    of_word, of_position = word[:, None] * width + column[None, :], position[:, None] * width + column[None, :]
    value = tl.load(word_embeddings + of_word, inside, other=0.0).to(tl.float32)
    value += tl.load(position_embeddings + of_position, inside, other=0.0).to(tl.float32)
    of_type = kind[:, None] * width + column[None, :]
    value += tl.load(token_types + of_type, inside, other=0.0).to(tl.float32)
    result = _layer_norm(value, inside, column, weight, bias, width, eps)
    tl.store(out + row[:, None] * width + column[None, :], result.to(out.dtype.element_ty), inside)


def add_layer_norm(x: torch.Tensor, residual: torch.Tensor, norm: torch.nn.LayerNorm) -> torch.Tensor:
    """LayerNorm(x + residual) over the last dimension; x, residual: contiguous [tokens, width], any float type."""
    return _launch(x, residual, norm)


def _launch(
    x: torch.Tensor,
    residual: torch.Tensor,
    norm: torch.nn.LayerNorm,
    summed: torch.Tensor | None = None,
    quantized: torch.Tensor | None = None,
    scale: float = 1.0,
) -> torch.Tensor:
    rows, width = x.shape
    out = torch.empty_like(x)
    block = triton.next_power_of_2(width)
    per_program = rows_per_program(block)
    _add_layer_norm[(triton.cdiv(rows, per_program),)](
        x, residual, norm.weight, norm.bias, out, out if summed is None else summed,
        out if quantized is None else quantized, rows, width, norm.eps, 1 / scale,
        SUM=summed is not None, QUANTIZE=quantized is not None, ROWS=per_program, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return out


def add_layer_norm_reference(x: torch.Tensor, residual: torch.Tensor, norm: torch.nn.LayerNorm) -> torch.Tensor:
    """The same in PyTorch, in float32."""
    weight, bias = norm.weight.float(), norm.bias.float()
    summed = x.float() + residual.float()
    return torch.nn.functional.layer_norm(summed, (x.shape[1],), weight, bias, norm.eps).to(x.dtype)


def add_then_layer_norm(
    x: torch.Tensor, residual: torch.Tensor, norm: torch.nn.LayerNorm
) -> tuple[torch.Tensor, torch.Tensor]:
    """x + residual and its LayerNorm, for layers that are normed before attention and feed-forward.

    x, residual: contiguous [tokens, width].
    """
    summed = torch.empty_like(x)
    return summed, _launch(x, residual, norm, summed=summed)


def add_layer_norm_quantize(
    x: torch.Tensor, residual: torch.Tensor, norm: torch.nn.LayerNorm, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """LayerNorm(x + residual) in the type of x, and the same divided by the scale as float8_e4m3fn.

    x, residual: contiguous [tokens, width].
    """
    quantized = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    return _launch(x, residual, norm, quantized=quantized, scale=scale), quantized


def embed_layer_norm(
    ids: torch.Tensor,
    positions: torch.Tensor,
    word_embeddings: torch.Tensor,
    position_embeddings: torch.Tensor,
    token_types: torch.Tensor,
    norm: torch.nn.LayerNorm,
    first_position: int,
) -> torch.Tensor:
    """LayerNorm(word_embeddings[ids] + position_embeddings[positions + first_position] + token_types[types]).

    ids, positions: int [tokens]; an id's type is its TYPE_BIT. word_embeddings: [vocabulary, width].
    position_embeddings: [positions, width]. token_types: [types, width]. first_position: 0 for BERT, padding id + 1 for
    RoBERTa. Returns [tokens, width] in the type of `word_embeddings`.
    """
    rows, width = len(ids), word_embeddings.shape[1]
    out = torch.empty((rows, width), dtype=word_embeddings.dtype, device=word_embeddings.device)
    block = triton.next_power_of_2(width)
    per_program = rows_per_program(block)
    _embed_layer_norm[(triton.cdiv(rows, per_program),)](
        ids, positions, word_embeddings, position_embeddings, token_types, norm.weight, norm.bias, out,
        rows, width, first_position, norm.eps, BIT=TYPE_BIT, MASK=ID_MASK, ROWS=per_program, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return out


def embed_layer_norm_reference(
    ids: torch.Tensor,
    positions: torch.Tensor,
    word_embeddings: torch.Tensor,
    position_embeddings: torch.Tensor,
    token_types: torch.Tensor,
    norm: torch.nn.LayerNorm,
    first_position: int,
) -> torch.Tensor:
    """The same in PyTorch, in float32."""
    words, types = word_embeddings[(ids & ID_MASK).long()].float(), token_types[(ids >> TYPE_BIT).long()].float()
    places = position_embeddings[positions.long() + first_position].float()
    weight, bias, width = norm.weight.float(), norm.bias.float(), word_embeddings.shape[1]
    summed = words + places + types
    return torch.nn.functional.layer_norm(summed, (width,), weight, bias, norm.eps).to(word_embeddings.dtype)
