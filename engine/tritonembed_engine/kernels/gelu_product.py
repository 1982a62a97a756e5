"""GELU(x W^T + b) in fp8, from fp8 to fp8: the activation and its quantization in the product's epilogue.

A product of 32,768 x 768 with 3,072 x 768 takes 160 µs on an H100, and GELU with quantization in a kernel of its own
101 µs. Together they take 151 µs (perf's kernel_speed). Each multiprocessor has a program, which takes tile after tile:
one warp loads the next tiles (with Hopper's tensor memory accelerator) while the others multiply.
"""

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from tritonembed_engine.kernels.quantize import tanh_gelu

SMALL_TILE = {"ROWS": 64, "COLUMNS": 64, "DEPTH": 256, "SPECIALIZE": False, "num_warps": 4, "num_stages": 3}
MIDDLE_TILE = {"ROWS": 128, "COLUMNS": 128, "DEPTH": 128, "SPECIALIZE": False, "num_warps": 4, "num_stages": 3}
LARGE_TILE = {"ROWS": 128, "COLUMNS": 256, "DEPTH": 128, "SPECIALIZE": True, "num_warps": 8, "num_stages": 3}
SMALL_ROWS, MIDDLE_ROWS = 256, 6144
"""Up to these numbers of rows the first two tiles are the fastest of seven that were measured on an H100."""

TILES_SHARING_WEIGHTS = 8
"""Tiles of rows that run together, so that they share a tile's weights in the L2 cache."""


@triton.jit(do_not_specialize=["rows"])
def _gelu_product(  # type: ignore[no-untyped-def]
    x,  # descriptor of [rows, inputs], in blocks of [ROWS, DEPTH]
    weight,  # descriptor of [outputs, inputs], in blocks of [COLUMNS, DEPTH]
    out,  # descriptor of [rows, outputs], in blocks of [ROWS, COLUMNS]
    scales,  # float32 [outputs]
    bias,  # [outputs]
    inverse,  # 1 / scale of the result
    rows,
    outputs,
    inputs,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,  # tiles of rows that run together
    SPECIALIZE: tl.constexpr,  # a warp of its own loads
    TANH_UNIT: tl.constexpr,  # use the GPU's tanh instruction
):
    tiles_down, tiles_across = tl.cdiv(rows, ROWS), tl.cdiv(outputs, COLUMNS)
    for tile in tl.range(
        tl.program_id(0), tiles_down * tiles_across, tl.num_programs(0), flatten=True, warp_specialize=SPECIALIZE
    ):
        group = tile // (GROUP * tiles_across)
        height = tl.minimum(tiles_down - group * GROUP, GROUP)
        index = tile % (GROUP * tiles_across)
        row, column = (group * GROUP + index % height) * ROWS, index // height * COLUMNS
        value = tl.zeros((ROWS, COLUMNS), tl.float32)
        for step in tl.range(0, tl.cdiv(inputs, DEPTH)):
            value = tl.dot(x.load([row, step * DEPTH]), weight.load([column, step * DEPTH]).T, value)
        at = column + tl.arange(0, COLUMNS)
        scale = tl.load(scales + at, at < outputs, other=0.0)
        value = value * scale[None, :] + tl.load(bias + at, at < outputs, other=0.0).to(tl.float32)[None, :]
        # 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
        if TANH_UNIT:
            half = 0.5 * value
            turn = value * (0.7978845608 + 0.0356774081 * value * value)
            turned = tl.inline_asm_elementwise(
                "tanh.approx.f32 $0, $1;", "=f,f", [turn], dtype=tl.float32, is_pure=True, pack=1
            )
            value = half * turned + half
        else:
            value = tanh_gelu(value)
        out.store([row, column], (value * inverse).to(out.dtype))


def gelu_product(
    x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor, scale: float
) -> torch.Tensor:
    """GELU(x W^T * scales + bias) / scale, in the type of x; GELU in its tanh form (see `quantize`).

    x: [rows, inputs]. weight: [outputs, inputs]. scales: float32 [outputs], of a product of x and weight.
    bias: [outputs]. x and weight contiguous, `inputs` and `outputs` multiples of 16.
    """
    (rows, inputs), outputs = x.shape, len(weight)
    out = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    tile: dict[str, Any] = SMALL_TILE if rows <= SMALL_ROWS else MIDDLE_TILE if rows <= MIDDLE_ROWS else LARGE_TILE
    tall, wide, deep = tile["ROWS"], tile["COLUMNS"], tile["DEPTH"]
    tiles = triton.cdiv(rows, tall) * triton.cdiv(outputs, wide)
    _gelu_product[(min(tiles, _programs(x.device) * (1 if tile["SPECIALIZE"] else 2)),)](
        TensorDescriptor.from_tensor(x, [tall, deep]),
        TensorDescriptor.from_tensor(weight, [wide, deep]),
        TensorDescriptor.from_tensor(out, [tall, wide]),
        scales, bias, 1 / scale, rows, outputs, inputs, GROUP=TILES_SHARING_WEIGHTS, TANH_UNIT=x.is_cuda, **tile,
    )  # fmt: skip
    return out


def gelu_product_serves(device: torch.device) -> bool:
    """Whether the device is a Hopper GPU: the tiles use its instructions and were measured on it."""
    return device.type == "cuda" and bool(torch.cuda.get_device_capability(device)[0] == 9)


@functools.cache
def _programs(device: torch.device) -> int:
    """Number of multiprocessors; 1 in the interpreter on a CPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def gelu_product_reference(
    x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """GELU(x W^T * scales + bias) in PyTorch, in float32."""
    value = x.float() @ weight.float().t() * scales + bias.float()
    return torch.nn.functional.gelu(value, approximate="tanh")
