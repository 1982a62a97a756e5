"""Each of our GPU kernels alone: time, and the bytes that it must move per second.

    python -m tritonembed_perf.scripts.kernel_speed [--tokens 32768] [--width 768] [--json FILE]

The floor of a kernel is what it must read and write; an H200's memory moves 4.3 TB/s at most (measured by copying).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from tritonembed_perf.options import run_script
from tritonembed_perf.scripts.executor import check_gpu

ROUNDS = 7
REPEAT = 20
HEADS = 12
SENTENCE_TOKENS = (50, 128, 256, 512)
QWEN3_HEADS = (16, 8, 128)
"""Heads of queries, heads of keys, and their size."""

COLUMNS = 4096
"""Max pooling computes this many ids of the vocabulary at once."""

SCALE = 0.02
"""The scale of fp8."""

TOKENS_PER_ROW = 16
"""A CUDA graph has a row per this many tokens; rows that a batch does not need are empty."""


def kernel_speed(tokens: int = 32768, width: int = 768) -> dict[str, Any]:
    """Print a row per kernel; medians of ROUNDS."""
    check_gpu()
    rows = measure(tokens, width)
    print(f"{tokens} tokens, {width} wide, bf16")
    for row in rows:
        print(f"{row['kernel']:>40}: {row['microseconds']:7.1f} µs  {row['terabytes_per_second']:5.2f} TB/s")
    return {"rows": rows}


def measure(tokens: int, width: int) -> list[dict[str, Any]]:
    """Time and bytes/s of every kernel at one size."""
    import torch

    from tritonembed_engine.kernels.gelu_product import gelu_product, gelu_product_serves
    from tritonembed_engine.kernels.layer_norm import add_layer_norm, add_layer_norm_quantize, embed_layer_norm
    from tritonembed_engine.kernels.quantize import quantize
    from tritonembed_engine.kernels.short_attention import LONGEST, short_attention
    from tritonembed_engine.kernels.tiled_attention import tiled_attention
    from tritonembed_engine.kernels.token_pools import mean_pool

    def random(*shape: int) -> "torch.Tensor":
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)

    x, residual, wide, qkv = (random(tokens, size) for size in (width, width, 4 * width, 3 * width))
    words, places, types = random(30_522, width), random(512, width), random(2, width)
    norm = torch.nn.LayerNorm(width, device="cuda", dtype=torch.bfloat16)
    ids = torch.randint(0, len(words), (tokens,), device="cuda", dtype=torch.int32)
    positions = torch.arange(tokens, device="cuda") % 50
    x8, weight = x.to(torch.float8_e4m3fn), random(4 * width, width).to(torch.float8_e4m3fn)
    one, scales, bias = torch.ones((), device="cuda"), torch.full((4 * width,), 0.01, device="cuda"), random(4 * width)
    row = tokens * width
    # Bytes: of bf16 two per element, of fp8 one, of the embedding's gathered rows two each.
    cases: list[tuple[str, int, Callable[[], object]]] = [
        ("copy (the memory's limit)", 4 * row, lambda: x.clone()),
        ("add + LayerNorm", 6 * row, lambda: add_layer_norm(x, residual, norm)),
        (
            "embeddings + LayerNorm",
            6 * row,
            lambda: embed_layer_norm(ids, positions, words, places, types, norm, 0),
        ),
        ("add + LayerNorm + fp8", 7 * row, lambda: add_layer_norm_quantize(x, residual, norm, SCALE)),
        ("fp8", 3 * row, lambda: quantize(x, SCALE)),
        ("GELU + fp8", 12 * row, lambda: quantize(wide, SCALE, gelu=True)),
        ("product in fp8", 9 * row, lambda: torch._scaled_mm(x8, weight.t(), one, one, bias, out_dtype=x.dtype)),
    ]
    cases += _cases_of_rotary_layers(tokens)
    if gelu_product_serves(x.device):
        cases.append(("product + GELU + fp8", 5 * row, lambda: gelu_product(x8, weight, scales, bias, SCALE)))
    for length, in_graph in ((length, in_graph) for length in SENTENCE_TOKENS for in_graph in (False, True)):
        ends = list(range(0, tokens - tokens % length + 1, length))
        ends += ends[-1:] * (tokens // TOKENS_PER_ROW if in_graph else 0)
        cu_seqlens = torch.tensor(ends, device="cuda", dtype=torch.int32)
        attention = short_attention if length <= LONGEST else tiled_attention
        attend = partial(attention, qkv, cu_seqlens, HEADS, length, (width // HEADS) ** -0.5)
        where = ", graph's rows" if in_graph else ""
        cases += [
            (f"attention, {length} tokens{where}", 8 * row, attend),
            (f"attention + fp8, {length} tokens{where}", 7 * row, partial(attend, SCALE)),
            (f"mean pooling, {length} tokens{where}", 2 * row, partial(mean_pool, x, cu_seqlens)),
        ]
    with torch.inference_mode():
        return [_row(name, size, run) for name, size, run in cases]


def _cases_of_rotary_layers(tokens: int) -> list[tuple[str, int, Callable[[], object]]]:
    """Kernels with the shapes of Qwen3-0.6B and ModernBERT-base: names, bytes, calls."""
    import torch

    from tritonembed_engine.kernels.gate import gelu_gate
    from tritonembed_engine.kernels.layer_norm import add_then_layer_norm
    from tritonembed_engine.kernels.pooled_attention import pooled_attention
    from tritonembed_engine.kernels.rotary import Rotary, rotate
    from tritonembed_engine.kernels.token_pools import max_pool
    from tritonembed_engine.kernels.window_attention import UNLIMITED, window_attention

    def random(*shape: int) -> "torch.Tensor":
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)

    heads, key_heads, size = QWEN3_HEADS
    qkv, small_qkv = random(tokens, (heads + 2 * key_heads) * size), random(tokens, 3 * HEADS * 64)
    normed, plain = (
        Rotary(torch.rand(tokens, one, device="cuda"), gains, 1e-6)
        for one, gains in ((size, torch.ones(2, size, device="cuda")), (64, None))
    )
    positions, x = torch.arange(tokens, device="cuda") % 512, random(tokens, 768)
    norm = torch.nn.LayerNorm(768, device="cuda", dtype=torch.bfloat16)
    wide, logits = random(tokens, 2 * 1152), random(tokens, COLUMNS)

    row = 2 * tokens
    cases: list[tuple[str, int, Callable[[], object]]] = [
        (
            "rotation + norms, Qwen3",
            2 * row * (heads + key_heads) * size,
            lambda: rotate(qkv, positions, heads, key_heads, normed),
        ),
        ("rotation, ModernBERT", 2 * row * 2 * HEADS * 64, lambda: rotate(small_qkv, positions, HEADS, HEADS, plain)),
        ("add, LayerNorm of the sum", 4 * row * 768, lambda: add_then_layer_norm(x, x, norm)),
        ("GELU x gate, 1152", 3 * row * 1152, lambda: gelu_gate(wide)),
    ]
    for length in SENTENCE_TOKENS:
        ends = torch.arange(0, tokens + 1, length, device="cuda", dtype=torch.int32)
        last, first = ends[1:].long() - 1, ends[:-1].long()
        causal = (ends, heads, key_heads, length, size**-0.5, (UNLIMITED, 0))
        local = (ends, HEADS, HEADS, length, 64**-0.5, (64, 64))
        pooled = partial(pooled_attention, qkv[last, : heads * size], qkv[:, heads * size :], ends, last)
        of_first = partial(pooled_attention, small_qkv[first, : HEADS * 64], small_qkv[:, HEADS * 64 :], ends, first)
        largest = torch.empty(len(last), COLUMNS, device="cuda")
        cases += [
            (
                f"window attention, Qwen3, {length}",
                row * (2 * heads + 2 * key_heads) * size,
                partial(window_attention, qkv, *causal),
            ),
            (
                f"window attention, 64 + 64, {length}",
                4 * row * HEADS * 64,
                partial(window_attention, small_qkv, *local),
            ),
            (
                f"pooled attention, Qwen3, {length}",
                row * 2 * key_heads * size,
                partial(pooled, heads, key_heads, size**-0.5, (UNLIMITED, 0)),
            ),
            (
                f"pooled attention, 12 x 64, {length}",
                2 * row * HEADS * 64,
                partial(of_first, HEADS, HEADS, 64**-0.5, (UNLIMITED, UNLIMITED)),
            ),
            (f"max pooling, {length}", row * COLUMNS, partial(max_pool, logits, ends, largest)),
        ]
    return cases


def _row(name: str, size: int, run: Callable[[], object]) -> dict[str, Any]:
    import torch

    for _ in range(3):
        run()
    # As a graph: short kernels that Python launches one by one would wait for their launches.
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(REPEAT):
            run()
    graph.replay()
    times = []
    for _ in range(ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / REPEAT * 1e3)
    microseconds = float(np.median(times))
    return {"kernel": name, "microseconds": microseconds, "terabytes_per_second": size / microseconds / 1e6}


if __name__ == "__main__":
    run_script("kernel_speed", __doc__, kernel_speed)
