"""Which kernels `kernel_speed` measures, on tensors without memory."""

from typing import Any

import pytest
from torch.overrides import TorchFunctionMode

from tritonembed_engine.kernels import gelu_product
from tritonembed_perf.scripts import kernel_speed


class WithoutMemory(TorchFunctionMode):
    """Tensors on the GPU become tensors without memory, of shape and type alone."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return func(*args, **({**kwargs, "device": "meta"} if kwargs.get("device") == "cuda" else kwargs))


@pytest.mark.parametrize("serves", [True, False])
def test_the_product_with_gelu_is_measured_only_if_it_serves(serves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gelu_product, "gelu_product_serves", lambda device: serves)
    monkeypatch.setattr(kernel_speed, "_row", lambda name, size, run: {"kernel": name})
    with WithoutMemory():
        kernels = [row["kernel"] for row in kernel_speed.measure(4096, 768)]
    assert "GELU + fp8" in kernels
    assert "pooled attention, Qwen3, 512" in kernels
    assert ("product + GELU + fp8" in kernels) == serves
