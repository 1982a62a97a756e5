"""An activation of the first half of each row times its second half.

Shazeer, "GLU variants improve transformer" (2020), calls them GEGLU (with GELU) and SwiGLU (with SiLU).
"""

import torch
import triton
import triton.language as tl

BLOCK = 1024


@triton.jit(do_not_specialize=["rows"])
def _gate(  # type: ignore[no-untyped-def]
    x,  # [rows, 2 x width]
    out,  # [rows, width]
    rows,
    width,
    SILU: tl.constexpr,  # else GELU
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < rows.to(tl.int64) * width
    row = at // width
    from_ = row * width + at
    value = tl.load(x + from_, inside, other=0.0).to(tl.float32)
    gate = tl.load(x + from_ + width, inside, other=0.0).to(tl.float32)
    # SiLU is x sigmoid(x), GELU x / 2 (1 + erf(x / sqrt(2))).
    part = tl.sigmoid(value) if SILU else 0.5 * (1.0 + tl.erf(value * 0.7071067811865476))
    tl.store(out + at, (value * part * gate).to(out.dtype.element_ty), inside)


def gelu_gate(x: torch.Tensor) -> torch.Tensor:
    """GELU(x[:, :width]) * x[:, width:], exact GELU; x: contiguous [tokens, 2 x width]. Returns [tokens, width]."""
    return _launch(x, silu=False)


def silu_gate(x: torch.Tensor) -> torch.Tensor:
    """SiLU(x[:, :width]) * x[:, width:]; x: contiguous [tokens, 2 x width]. Returns [tokens, width]."""
    return _launch(x, silu=True)


def _launch(x: torch.Tensor, *, silu: bool) -> torch.Tensor:
    rows, width = len(x), x.shape[1] // 2
    out = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    _gate[(triton.cdiv(rows * width, BLOCK),)](x, out, rows, width, SILU=silu, BLOCK=BLOCK, num_warps=4)
    return out


def gelu_gate_reference(x: torch.Tensor) -> torch.Tensor:
    """The same in PyTorch, in float32."""
    value, gate = x.float().chunk(2, dim=1)
    return (torch.nn.functional.gelu(value) * gate).to(x.dtype)


def silu_gate_reference(x: torch.Tensor) -> torch.Tensor:
    """The same in PyTorch, in float32."""
    value, gate = x.float().chunk(2, dim=1)
    return (torch.nn.functional.silu(value) * gate).to(x.dtype)
