"""Every kernel compiles ahead of time for the GPUs that people have, within their shared memory, on any machine.

Launches are recorded instead of run: what is compiled is what the functions around the kernels ask for.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction, mangle_type

from tritonembed_engine.kernels.gate import gelu_gate
from tritonembed_engine.kernels.gelu_product import gelu_product
from tritonembed_engine.kernels.layer_norm import (
    add_layer_norm,
    add_layer_norm_quantize,
    add_then_layer_norm,
    embed_layer_norm,
)
from tritonembed_engine.kernels.pooled_attention import pooled_attention
from tritonembed_engine.kernels.quantize import quantize
from tritonembed_engine.kernels.rotary import Rotary, rotate
from tritonembed_engine.kernels.short_attention import HEAD_SIZES, WARPS, short_attention
from tritonembed_engine.kernels.tiled_attention import tiled_attention
from tritonembed_engine.kernels.token_pools import max_pool, mean_pool
from tritonembed_engine.kernels.window_attention import window_attention

SHARED = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227}
"""Shared memory per block in KiB, by compute capability (CUDA C++ Programming Guide, "Technical Specifications per
Compute Capability")."""

WITH_FP8 = (89, 90, 100)
GELU_PRODUCT = (90,)
"""Where `gelu_product_serves`. Elsewhere vLLM's product and `quantize` serve."""

Launch = tuple[JITFunction[Any], tuple[Any, ...], dict[str, Any]]


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """The launches of kernels, which do not run."""
    launches: list[Launch] = []

    def record(kernel: JITFunction[Any], *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        launches.append((kernel, arguments, options))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", record)
        yield launches


def compiled(launch: Launch, capability: int) -> Any:
    """The kernel's machine code, for the types and the constants of the launch."""
    kernel, arguments, options = launch
    values = dict(zip(kernel.arg_names, arguments, strict=False))
    values |= {name: options.pop(name) for name in kernel.arg_names if name in options}
    constants = {one.name: values.pop(one.name) for one in kernel.params if one.is_constexpr}
    signature = {name: "constexpr" if name in constants else mangle_type(values[name]) for name in kernel.arg_names}
    aligned = [index for index, name in enumerate(kernel.arg_names) if isinstance(values.get(name), torch.Tensor)]
    source = ASTSource(kernel, signature, constants, {(index,): [["tt.divisibility", 16]] for index in aligned})
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def launches_of(dtype: torch.dtype) -> Iterator[Callable[[], object]]:
    """Calls of all functions, without fp8."""
    x = torch.zeros(64, 768, dtype=dtype)
    norm = torch.nn.LayerNorm(768, dtype=dtype)
    cu_seqlens, ids = torch.zeros(3, dtype=torch.int32), torch.zeros(64, dtype=torch.int32)
    positions = ids.long()
    yield lambda: add_layer_norm(x, x, norm)
    yield lambda: add_then_layer_norm(x, x, norm)
    yield lambda: embed_layer_norm(ids, positions, x, x, x, norm, 2)
    yield lambda: gelu_gate(x)
    yield lambda: mean_pool(x, cu_seqlens)
    yield lambda: max_pool(x, cu_seqlens, torch.zeros(2, 768))
    for size in HEAD_SIZES:
        qkv = torch.zeros(64, 3 * 4 * size, dtype=dtype)
        for block in WARPS:
            yield lambda qkv=qkv, block=block: short_attention(qkv, cu_seqlens, 4, block, 1.0)  # type: ignore[misc]
        for longest in (200, 512):
            yield lambda qkv=qkv, longest=longest: tiled_attention(qkv, cu_seqlens, 4, longest, 1.0)  # type: ignore[misc]
        if size >= 32:
            grouped = torch.zeros(64, 8 * size, dtype=dtype)
            rotary = Rotary(torch.zeros(9, size), torch.zeros(2, size), 1e-6)
            yield lambda grouped=grouped: window_attention(grouped, cu_seqlens, 4, 2, 99, 1.0, (64, 0))  # type: ignore[misc]
            for heads in ((4, 2), (4, 0), (0, 4)):
                yield lambda on=(grouped, positions, *heads, rotary): rotate(*on)  # type: ignore[misc]
        pooled = (qkv[:2, : 4 * size], qkv[:, 4 * size :], cu_seqlens, positions[:2], 4, 4, 1.0, (64, 0))
        yield lambda pooled=pooled: pooled_attention(*pooled)  # type: ignore[misc]


def launches_with_fp8(dtype: torch.dtype) -> Iterator[Callable[[], object]]:
    """Calls of the functions that quantize."""
    x, norm = torch.zeros(64, 768, dtype=dtype), torch.nn.LayerNorm(768, dtype=dtype)
    cu_seqlens, qkv = torch.zeros(3, dtype=torch.int32), torch.zeros(64, 3 * 12 * 64, dtype=dtype)
    yield lambda: quantize(x, 1.0, gelu=True)
    yield lambda: add_layer_norm_quantize(x, x, norm, 1.0)
    yield lambda: short_attention(qkv, cu_seqlens, 12, 64, 1.0, 1.0)
    yield lambda: tiled_attention(qkv, cu_seqlens, 12, 512, 1.0, 1.0)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("capability", SHARED)
def test_every_kernel_compiles_within_the_shared_memory(capability: int) -> None:
    # Turing has no products of bfloat16.
    dtype = torch.float16 if capability < 80 else torch.bfloat16
    with recorded() as launches:
        for call in launches_of(dtype):
            call()
        if capability in WITH_FP8:
            for call in launches_with_fp8(dtype):
                call()
        if capability in GELU_PRODUCT:
            for rows in (64, 512, 8192):
                fp8 = torch.zeros(rows, 768, dtype=torch.float8_e4m3fn)
                gelu_product(fp8, fp8[:64].repeat(48, 1), torch.zeros(3072), torch.zeros(3072, dtype=dtype), 1.0)
    assert len({kernel.fn.__name__ for kernel, _, _ in launches}) >= 9
    for launch in launches:
        code = compiled(launch, capability)
        assert code.asm["cubin"], launch[0]
        assert code.metadata.shared <= SHARED[capability] * 1024, (launch[0], code.metadata.shared)
