"""Residual add and LayerNorm in one pass: two reads and one write of [tokens, width]."""

import torch
import triton
import triton.language as tl

from tritonembed_engine.kernels.rows import rows_per_program


@triton.jit(do_not_specialize=["rows"])
def _add_layer_norm(x, residual, weight, bias, out, rows, width, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    at = row[:, None] * width + column[None, :]
    value = tl.load(x + at, inside, other=0.0).to(tl.float32)
    value += tl.load(residual + at, inside, other=0.0).to(tl.float32)
    mean = tl.sum(value, 1) / width
    centred = tl.where(inside, value - mean[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / width + eps)
    gain = tl.load(weight + column, column < width, other=0.0).to(tl.float32)
    shift = tl.load(bias + column, column < width, other=0.0).to(tl.float32)
    result = centred * scale[:, None] * gain[None, :] + shift[None, :]
    tl.store(out + at, result.to(out.dtype.element_ty), inside)


def add_layer_norm(x: torch.Tensor, residual: torch.Tensor, norm: torch.nn.LayerNorm) -> torch.Tensor:
    """LayerNorm(x + residual) over the last dimension; x, residual: contiguous [tokens, width], any float type."""
    rows, width = x.shape
    out = torch.empty_like(x)
    block = triton.next_power_of_2(width)
    per_program = rows_per_program(block)
    _add_layer_norm[(triton.cdiv(rows, per_program),)](
        x, residual, norm.weight, norm.bias, out, rows, width, norm.eps, ROWS=per_program, BLOCK=block, num_warps=4
    )
    return out


def add_layer_norm_reference(x: torch.Tensor, residual: torch.Tensor, norm: torch.nn.LayerNorm) -> torch.Tensor:
    """The same in PyTorch, in float32."""
    weight, bias = norm.weight.float(), norm.bias.float()
    summed = x.float() + residual.float()
    return torch.nn.functional.layer_norm(summed, (x.shape[1],), weight, bias, norm.eps).to(x.dtype)
