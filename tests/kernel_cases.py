"""Parity of each kernel with its reference: the same cases on a GPU and, in Triton's interpreter, on a CPU.

TRITON_INTERPRET=1 python -m tests.kernel_cases      runs all cases on the CPU; exits non-zero at the first difference
TRITON_INTERPRET=1 python -m tests.kernel_cases few  runs attention with every length and every head, not with each pair
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, product
from types import SimpleNamespace

import torch

from tritonembed_engine.executors.pooling import segment_mean
from tritonembed_engine.kernels.bert_fp8 import fp8_product
from tritonembed_engine.kernels.gate import gelu_gate, gelu_gate_reference
from tritonembed_engine.kernels.gelu_product import gelu_product, gelu_product_reference, gelu_product_serves
from tritonembed_engine.kernels.layer_norm import (
    add_layer_norm,
    add_layer_norm_quantize,
    add_layer_norm_reference,
    add_then_layer_norm,
    embed_layer_norm,
    embed_layer_norm_reference,
)
from tritonembed_engine.kernels.pooled_attention import pooled_attention
from tritonembed_engine.kernels.quantize import LARGEST, quantize
from tritonembed_engine.kernels.rotary import Rotary, rotate, rotate_reference
from tritonembed_engine.kernels.short_attention import short_attention, short_attention_reference
from tritonembed_engine.kernels.tiled_attention import tiled_attention
from tritonembed_engine.kernels.token_pools import max_pool, max_pool_reference, mean_pool
from tritonembed_engine.kernels.window_attention import UNLIMITED, window_attention, window_attention_reference
from tritonembed_engine.token_ids import TYPE_BIT

Attention = Callable[[torch.Tensor, torch.Tensor, int, int, float, float | None], torch.Tensor]

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Largest difference: one or two roundings of values around 1 to 4."""


def check_add_layer_norm(device: str, dtype: torch.dtype, rows: int, width: int) -> None:
    """Any number of rows, widths that are no power of two."""
    x, residual = (torch.randn(rows, width, device=device, dtype=dtype) for _ in range(2))
    norm = _norm(width, device, dtype)
    _same(add_layer_norm(x, residual, norm), add_layer_norm_reference(x, residual, norm))
    summed, normed = add_then_layer_norm(x, residual, norm)
    _same(summed, x + residual)
    _same(normed, add_layer_norm_reference(x, residual, norm))


def check_embed_layer_norm(device: str, dtype: torch.dtype, rows: int, width: int, first_position: int) -> None:
    """BERT (first_position 0) and RoBERTa (2), with tokens of both types."""
    words, places = (torch.randn(n, width, device=device, dtype=dtype) for n in (50, 40))
    ids = torch.randint(0, 50, (rows,), device=device, dtype=torch.int32)
    ids += torch.arange(rows, device=device, dtype=torch.int32) % 2 << TYPE_BIT
    positions = torch.randint(0, 40 - first_position, (rows,), device=device)
    arguments = (ids, positions, words, places, words[3:5], _norm(width, device, dtype), first_position)
    _same(embed_layer_norm(*arguments), embed_layer_norm_reference(*arguments))


def check_attention(
    attention: Attention, device: str, dtype: torch.dtype, lengths: list[int], heads: int, head_size: int
) -> None:
    """Sentences of different lengths. Empty sentences and tokens after the last sentence pad a CUDA graph's batch."""
    ends = torch.tensor([0, *lengths]).cumsum(0)
    tokens = int(ends[-1])
    qkv = torch.randn(tokens + 3, 3 * heads * head_size, device=device, dtype=dtype)
    cu_seqlens = ends.to(device=device, dtype=torch.int32)
    scale = head_size**-0.5
    expected = short_attention_reference(qkv, cu_seqlens, heads, scale)[:tokens]
    _same(attention(qkv, cu_seqlens, heads, max(lengths), scale, None)[:tokens], expected)
    fp8_scale = 5 / LARGEST
    attended = attention(qkv, cu_seqlens, heads, max(lengths), scale, fp8_scale)[:tokens]
    _same_fp8(attended, expected, fp8_scale, TOLERANCE[dtype] * max(1.0, expected.float().abs().max().item()))


def check_rotate(device: str, dtype: torch.dtype, rows: int, heads: tuple[int, int, int], *, normed: bool) -> None:
    """Queries and keys change, values do not. heads: of queries, of keys, and their size."""
    queries, keys, size = heads
    angles = torch.rand(700, size // 2, device=device) * 6
    gains = torch.randn(2, size, device=device) if normed else None
    rotary = Rotary(torch.cat([angles.cos(), angles.sin()], 1), gains, 1e-6)
    qkv = torch.randn(rows, (queries + 2 * keys) * size, device=device, dtype=dtype)
    positions = torch.randint(0, 700, (rows,), device=device)
    expected = rotate_reference(qkv, positions, queries, keys, rotary)
    rotate(qkv, positions, queries, keys, rotary)
    _same(qkv, expected)


def check_window_attention(
    device: str, dtype: torch.dtype, lengths: list[int], heads: tuple[int, int, int], window: tuple[int, int]
) -> None:
    """As `check_attention`. heads: of queries, of keys, and their size."""
    queries, keys, size = heads
    cu_seqlens = torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)
    tokens, scale = sum(lengths), size**-0.5
    qkv = torch.randn(tokens + 3, (queries + 2 * keys) * size, device=device, dtype=dtype)
    expected = window_attention_reference(qkv, cu_seqlens, queries, keys, scale, window)
    attended = window_attention(qkv, cu_seqlens, queries, keys, max(lengths), scale, window)
    _same(attended[:tokens], expected[:tokens])


def check_pooled_attention(
    device: str, dtype: torch.dtype, lengths: list[int], heads: tuple[int, int, int], window: tuple[int, int]
) -> None:
    """As `check_window_attention`, for each sentence's first, middle and last token; zeros for empty sentences."""
    queries, keys, size = heads
    counts = torch.tensor(lengths, device=device)
    cu_seqlens = torch.tensor([0, *lengths], device=device).cumsum(0)
    tokens, scale = sum(lengths), size**-0.5
    qkv = torch.randn(tokens, (queries + 2 * keys) * size, device=device, dtype=dtype)
    every = window_attention_reference(qkv, cu_seqlens, queries, keys, scale, window)
    for rows in (cu_seqlens[:-1].clamp_max(tokens - 1), cu_seqlens[:-1] + counts // 2, cu_seqlens[1:] - 1):
        rows = rows.clamp_max(tokens - 1)
        expected = every[rows].masked_fill((counts == 0)[:, None], 0)
        of_keys, starts = qkv[:, queries * size :], cu_seqlens.to(torch.int32)
        pooled = pooled_attention(qkv[rows, : queries * size], of_keys, starts, rows, queries, keys, scale, window)
        _same(pooled, expected)


def check_gates(device: str, dtype: torch.dtype, rows: int, width: int) -> None:
    """Widths that are no multiple of a block."""
    x = 2 * torch.randn(rows, 2 * width, device=device, dtype=dtype)
    _same(gelu_gate(x), gelu_gate_reference(x))


def check_quantize(device: str, dtype: torch.dtype, rows: int, width: int) -> None:
    """Quantization alone, after GELU, and after residual and LayerNorm. Values beyond the scale saturate."""
    x, residual = (torch.randn(rows, width, device=device, dtype=dtype) for _ in range(2))
    x[0] = residual[0] = 0
    norm = _norm(width, device, dtype)
    for scale in (5 / LARGEST, 1 / LARGEST):
        for gelu in (False, True):
            value = torch.nn.functional.gelu(x.float(), approximate="tanh") if gelu else x
            _same_fp8(quantize(x, scale, gelu), value, scale)
        hidden, quantized = add_layer_norm_quantize(x, residual, norm, scale)
        _same(hidden, add_layer_norm_reference(x, residual, norm))
        _same_fp8(quantized, add_layer_norm_reference(x.float(), residual.float(), norm), scale)


def check_gelu_product(device: str, dtype: torch.dtype, rows: int, inputs: int, outputs: int) -> None:
    """One tile and many, and sizes that are no multiple of a tile. fp8 on a GPU, float16 in the interpreter."""
    x = (2 * torch.randn(rows, inputs, device=device)).to(dtype)
    weight = (2 * torch.randn(outputs, inputs, device=device)).to(dtype)
    scales = torch.rand(outputs, device=device) / (4 * inputs**0.5)
    bias = torch.randn(outputs, device=device, dtype=torch.float16)
    scale = 8 / LARGEST if dtype is torch.float8_e4m3fn else 0.5
    got, expected = gelu_product(x, weight, scales, bias, scale), gelu_product_reference(x, weight, scales, bias)
    assert got.shape == (rows, outputs)
    if dtype is torch.float8_e4m3fn:
        _same_fp8(got, expected, scale, 0.01)
    else:
        _same(got, (expected / scale).to(dtype))


def check_fp8_product(device: str, dtype: torch.dtype, rows: int, inputs: int, outputs: int) -> None:
    """With vLLM's one scale per weight matrix, and with one scale per column."""
    x = torch.randn(rows, inputs, device=device).to(torch.float8_e4m3fn)
    weight = torch.randn(outputs, inputs, device=device).to(torch.float8_e4m3fn).t()
    bias = torch.randn(outputs, device=device, dtype=dtype)
    for scales in (torch.tensor([0.02], device=device), torch.rand(outputs, 1, device=device) / 20):
        module = SimpleNamespace(weight=weight, bias=bias, weight_scale=scales)
        expected = 0.5 * (x.float() @ weight.float()) * scales.reshape(1, -1) + bias.float()
        _same(fp8_product(module, 0.5, dtype)(x), expected.to(dtype))


def check_mean_pool(device: str, dtype: torch.dtype, lengths: list[int], width: int) -> None:
    """Sentences of no token, of one token and of more than a tile; widths that are no multiple of a tile."""
    ends = torch.tensor([0, *lengths]).cumsum(0)
    cu_seqlens = ends.to(device=device, dtype=torch.int32)
    hidden = torch.randn(int(ends[-1]) + 3, width, device=device, dtype=dtype)
    _same(mean_pool(hidden, cu_seqlens), segment_mean(hidden[: int(ends[-1])], cu_seqlens))


def check_max_pool(device: str, dtype: torch.dtype, lengths: list[int], columns: int) -> None:
    """As `check_mean_pool`; into a part of a wider tensor, and with a value that is not a number."""
    cu_seqlens = torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)
    values = torch.randn(sum(lengths), columns, device=device, dtype=dtype) - 3
    values[1, 0] = float("nan")
    wide = torch.ones(len(lengths), columns + 5, device=device)
    max_pool(values, cu_seqlens, wide[:, 3 : 3 + columns])
    expected = max_pool_reference(values, cu_seqlens)
    expected[torch.tensor(lengths, device=device) == 0] = 0
    assert torch.equal(wide[:, 3 : 3 + columns].nan_to_num(7), expected.nan_to_num(7))
    assert wide[:, :3].eq(1).all()
    assert wide[:, 3 + columns :].eq(1).all()


SHORT = ([1], [5, 0, 16, 2], [50, 64, 0], [128, 1, 65], [100, *[3] * 40, 0, 0])
"""If there are many short or empty sentences, one program computes several."""
LONG = ([1, 300, 0, 65], [129], [31, 32, 33, 64, 160], [200, *[9, 70] * 20, 0, 0])
WINDOWS = (
    ([50, 1, 64, 0], (4, 2, 32), (UNLIMITED, 0)),
    ([128, 3, 65], (3, 3, 64), (64, 64)),
    ([16, *[3] * 40, 0, 0], (4, 1, 128), (UNLIMITED, UNLIMITED)),
    ([7, 30], (2, 2, 32), (4, 2)),
    ([1, 290, 0, 64], (2, 2, 64), (64, 64)),
    ([200], (2, 1, 32), (9, 0)),
)
"""Lengths, heads, windows: Qwen3, ModernBERT's local and global attention, and narrow windows."""

POOLED = (
    ([50, 1, 64, 0, 0], (4, 2, 32), (UNLIMITED, 0)),
    ([7, 150, 70], (2, 2, 64), (64, 64)),
    ([33, 3], (2, 1, 128), (UNLIMITED, UNLIMITED)),
    ([30], (1, 1, 16), (4, 2)),
)
HEADS = ((2, 32), (3, 64), (1, 16), (1, 128))
"""Numbers and sizes of heads."""


def all_cases(device: str, dtypes: list[torch.dtype], few: bool = False) -> None:
    """Run every case. few: attention only with every batch and every head, not with each pair."""
    torch.manual_seed(0)
    for dtype in dtypes:
        for rows, width in ((1, 16), (7, 384), (33, 768), (5, 1000)):
            check_add_layer_norm(device, dtype, rows, width)
            check_quantize(device, dtype, rows, width)
            check_gates(device, dtype, rows, width)
            for first_position in (0, 2):
                check_embed_layer_norm(device, dtype, rows, width, first_position)
        for rows, shape, normed in ((37, (4, 2, 32), True), (5, (3, 3, 64), False), (1, (2, 1, 128), True)):
            check_rotate(device, dtype, rows, shape, normed=normed)
        for width in (16, 200, 768):
            check_mean_pool(device, dtype, [1, 0, 33, 300, 2, 0, 0], width)
            check_max_pool(device, dtype, [3, 0, 33, 300, 1, 0], width)
        for lengths, shape, window in POOLED:
            check_pooled_attention(device, dtype, lengths, shape, window)
        if device == "cpu" and dtype is torch.bfloat16:
            continue  # the interpreter's tl.dot multiplies the bits of bfloat16 as integers
        if device == "cpu" or gelu_product_serves(torch.device(device)):
            for rows, inputs, outputs in ((3, 64, 48), (300, 160, 272)):
                check_gelu_product(device, dtype if device == "cpu" else torch.float8_e4m3fn, rows, inputs, outputs)
        for lengths, shape, window in WINDOWS:
            check_window_attention(device, dtype, lengths, shape, window)
        for lengths, (heads, head_size) in _shapes(SHORT, few):
            check_attention(short_attention, device, dtype, lengths, heads, head_size)
        if device != "cpu" and gelu_product_serves(torch.device(device)):
            for rows in (1, 257, 6_145, 40_000):
                check_gelu_product(device, torch.float8_e4m3fn, rows, 768, 3072)
                check_fp8_product(device, dtype, rows, 768, 2304)
        for lengths, (heads, head_size) in _shapes(LONG, few):
            check_attention(tiled_attention, device, dtype, lengths, heads, head_size)


def _shapes(batches: Sequence[list[int]], few: bool) -> Iterator[tuple[list[int], tuple[int, int]]]:
    """Lengths of a batch's sentences, with heads."""
    return zip(batches, cycle(HEADS), strict=False) if few else product(batches, HEADS)


def _norm(width: int, device: str, dtype: torch.dtype) -> torch.nn.LayerNorm:
    norm = torch.nn.LayerNorm(width, device=device, dtype=dtype)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    return norm


def _same(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.dtype == expected.dtype
    difference = (got.float() - expected.float()).abs().max().item()
    assert difference <= TOLERANCE[got.dtype] * max(1.0, expected.float().abs().max().item()), difference


def _same_fp8(got: torch.Tensor, value: torch.Tensor, scale: float, tolerance: float = 1e-3) -> None:
    """Equal up to e4m3's rounding (3 bits of mantissa: 1/16 of a value; steps of 2^-9 near zero) and the tolerance."""
    assert got.dtype == torch.float8_e4m3fn
    tolerance += 2**-9 * scale
    expected = value.float().clamp(-LARGEST * scale, LARGEST * scale)
    difference = (got.float() * scale - expected).abs()
    if got.device.type == "cpu":
        # The interpreter's conversion to e4m3 loses the carry of the mantissa (127 becomes 64, not 128), and does not
        # saturate, so values just below a power of two and beyond the range are left out.
        ratio, unsure = value.float().abs() / scale, tolerance / scale
        below, above = (ratio - unsure).clamp_min(2**-10), (ratio + unsure) * 16 / 15
        carries = torch.log2(below).floor() < torch.log2(above).floor()
        difference = torch.where(carries | (above >= LARGEST), 0, difference)
    assert (difference <= expected.abs() / 15 + tolerance).all()
    # Truncated values would pass the check above, but not this one.
    assert difference.norm() <= 0.04 * expected.norm() + tolerance


if __name__ == "__main__":
    with torch.inference_mode():
        all_cases("cpu", [torch.float32, torch.float16, torch.bfloat16], few="few" in sys.argv[1:])
    print("all kernels agree with their references")
