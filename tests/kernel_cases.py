"""Parity of each kernel with its reference: the same cases on a GPU and, through Triton's interpreter, on a CPU.

TRITON_INTERPRET=1 python -m tests.kernel_cases      runs all of them on the CPU; exits non-zero at the first difference
"""

from collections.abc import Callable

import torch

from tritonembed_engine.executors.pooling import segment_mean
from tritonembed_engine.kernels.add_layer_norm import add_layer_norm, add_layer_norm_reference
from tritonembed_engine.kernels.embed_layer_norm import embed_layer_norm, embed_layer_norm_reference
from tritonembed_engine.kernels.mean_pool import mean_pool
from tritonembed_engine.kernels.quantize import (
    Quantized,
    add_layer_norm_quantize,
    quantize_rows,
    quantize_rows_reference,
)
from tritonembed_engine.kernels.short_attention import short_attention, short_attention_reference
from tritonembed_engine.kernels.tiled_attention import tiled_attention

Attention = Callable[[torch.Tensor, torch.Tensor, int, int, float], torch.Tensor]

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Largest difference: a rounding or two of values around 1 to 4."""


def check_add_layer_norm(device: str, dtype: torch.dtype, rows: int, width: int) -> None:
    """Any number of rows, widths that are no power of two."""
    x, residual = (torch.randn(rows, width, device=device, dtype=dtype) for _ in range(2))
    norm = _norm(width, device, dtype)
    _same(add_layer_norm(x, residual, norm), add_layer_norm_reference(x, residual, norm))


def check_embed_layer_norm(device: str, dtype: torch.dtype, rows: int, width: int, first_place: int) -> None:
    """BERT (first_place 0) and RoBERTa (2)."""
    words, places = (torch.randn(n, width, device=device, dtype=dtype) for n in (50, 40))
    ids = torch.randint(0, 50, (rows,), device=device, dtype=torch.int32)
    positions = torch.randint(0, 40 - first_place, (rows,), device=device)
    arguments = (ids, positions, words, places, words[3], _norm(width, device, dtype), first_place)
    _same(embed_layer_norm(*arguments), embed_layer_norm_reference(*arguments))


def check_attention(
    attention: Attention, device: str, dtype: torch.dtype, lengths: list[int], heads: int, head_size: int
) -> None:
    """Sentences of different lengths; empty ones pad a CUDA graph's batch, and tokens after the last belong to none."""
    ends = torch.tensor([0, *lengths]).cumsum(0)
    tokens = int(ends[-1])
    qkv = torch.randn(tokens + 3, 3 * heads * head_size, device=device, dtype=dtype)
    starts = ends.to(device=device, dtype=torch.int32)
    scale = head_size**-0.5
    got = attention(qkv, starts, heads, max(lengths), scale)[:tokens]
    _same(got, short_attention_reference(qkv, starts, heads, scale)[:tokens])


def check_quantize(device: str, dtype: torch.dtype, rows: int, width: int) -> None:
    """Alone, after GELU, and after residual and LayerNorm; a row of zeros stays zero."""
    x, residual = (torch.randn(rows, width, device=device, dtype=dtype) for _ in range(2))
    x[0] = residual[0] = 0
    norm = _norm(width, device, dtype)
    for gelu in (False, True):
        _same_quantized(quantize_rows(x, gelu), quantize_rows_reference(x, gelu))
    hidden, quantized = add_layer_norm_quantize(x, residual, norm)
    _same(hidden, add_layer_norm_reference(x, residual, norm))
    unrounded = add_layer_norm_reference(x.float(), residual.float(), norm)
    _same_quantized(quantized, quantize_rows_reference(unrounded))


def check_mean_pool(device: str, dtype: torch.dtype, lengths: list[int], width: int) -> None:
    """Sentences of no token, of one, and of more than a tile; widths that are no multiple of a tile."""
    ends = torch.tensor([0, *lengths]).cumsum(0)
    starts = ends.to(device=device, dtype=torch.int32)
    hidden = torch.randn(int(ends[-1]) + 3, width, device=device, dtype=dtype)
    _same(mean_pool(hidden, starts), segment_mean(hidden[: int(ends[-1])], starts))


def all_cases(device: str, dtypes: list[torch.dtype]) -> None:
    """Run every case."""
    torch.manual_seed(0)
    for dtype in dtypes:
        for rows, width in ((1, 16), (7, 384), (33, 768), (5, 1000)):
            check_add_layer_norm(device, dtype, rows, width)
            check_quantize(device, dtype, rows, width)
            for first_place in (0, 2):
                check_embed_layer_norm(device, dtype, rows, width, first_place)
        for width in (16, 200, 768):
            check_mean_pool(device, dtype, [1, 0, 33, 300, 2, 0, 0], width)
        if device == "cpu" and dtype is torch.bfloat16:
            continue  # the interpreter's tl.dot multiplies the bits of bfloat16 as integers
        # With many short sentences, or rows without any, a program takes several.
        for lengths in ([1], [5, 0, 16, 2], [50, 64, 0], [128, 1, 65], [100, *[3] * 40, 0, 0]):
            for heads, head_size in ((2, 32), (3, 64)):
                check_attention(short_attention, device, dtype, lengths, heads, head_size)
        for lengths in ([1, 300, 0, 65], [129], [31, 32, 33, 64, 160], [200, *[9, 70] * 20, 0, 0]):
            for heads, head_size in ((2, 32), (3, 64)):
                check_attention(tiled_attention, device, dtype, lengths, heads, head_size)


def _norm(width: int, device: str, dtype: torch.dtype) -> torch.nn.LayerNorm:
    norm = torch.nn.LayerNorm(width, device=device, dtype=dtype)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    return norm


def _same(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.dtype == expected.dtype
    difference = (got.float() - expected.float()).abs().max().item()
    assert difference <= TOLERANCE[got.dtype] * max(1.0, expected.float().abs().max().item()), difference


def _same_quantized(got: Quantized, expected: Quantized) -> None:
    """To a step of e4m3 (3 bits of mantissa): a value on the edge between two may fall to either."""
    assert got[0].dtype == torch.float8_e4m3fn
    torch.testing.assert_close(got[1], expected[1], rtol=1e-3, atol=1e-12)
    if got[0].device.type == "cpu":
        return  # the interpreter's conversion to e4m3 loses the carry of the mantissa: 127 becomes 64, not 128
    value, reference = (pair[0].float() * pair[1] for pair in (got, expected))
    largest = reference.abs().amax(1, keepdim=True)
    assert ((value - reference).abs() <= 0.13 * reference.abs() + 1e-4 * largest).all()
    # … and few do.
    assert ((value - reference).abs() <= 1e-3 * largest).float().mean() > 0.97


if __name__ == "__main__":
    with torch.inference_mode():
        all_cases("cpu", [torch.float32, torch.float16, torch.bfloat16])
    print("all kernels agree with their references")
