"""GELU of the first half of each row times its second half.

Shazeer, "GLU variants improve transformer" (2020), calls it GEGLU.
"""

import torch
import triton
import triton.language as tl

BLOCK = 1024


@triton.jit(do_not_specialize=["rows"])
def _gelu_gate(  # type: ignore[no-untyped-def]
    x,  # [rows, 2 x width]
    out,  # [rows, width]
    rows,
    width,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < rows.to(tl.int64) * width
    row = at // width
    from_ = row * width + at
    value = tl.load(x + from_, inside, other=0.0).to(tl.float32)
    gate = tl.load(x + from_ + width, inside, other=0.0).to(tl.float32)
    part = 0.5 * (1.0 + tl.erf(value * 0.7071067811865476))  # 1 / sqrt(2)
    tl.store(out + at, (value * part * gate).to(out.dtype.element_ty), inside)


def gelu_gate(x: torch.Tensor) -> torch.Tensor:
    """GELU(x[:, :width]) * x[:, width:], exact GELU; x: contiguous [tokens, 2 x width]. Returns [tokens, width]."""
    rows, width = len(x), x.shape[1] // 2
    out = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    _gelu_gate[(triton.cdiv(rows * width, BLOCK),)](x, out, rows, width, BLOCK=BLOCK, num_warps=4)
    return out


def gelu_gate_reference(x: torch.Tensor) -> torch.Tensor:
    """The same in PyTorch, in float32."""
    value, gate = x.float().chunk(2, dim=1)
    return (torch.nn.functional.gelu(value) * gate).to(x.dtype)
