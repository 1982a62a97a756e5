"""Weights of 4 bits, packed here in the layouts of AutoGPTQ and AutoAWQ. The reference has them unpacked."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritonembed_perf.families.decoders import QWEN_PROMPTS, decoder, write
from tritonembed_perf.families.registry import case
from tritonembed_perf.families.writing import ModelParts

if TYPE_CHECKING:
    import torch

    from tritonembed_perf.families.writing import State

FAMILY = "Weights in 4 bits"
GROUP = 128
"""Number of inputs that share a scale."""

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Place i, of four bits each, holds the value of column AWQ_ORDER[i]."""

IN_16_BITS = {"dtype": "bfloat16"}
BF16_COSINE = 0.999
"""Least cosine. vLLM has no 4-bit product in float32, and rounding to bfloat16 alone costs this much."""


def _split(weight: "torch.Tensor", symmetric: bool) -> tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]:
    """Quantize a matrix [outputs, inputs]: integers 0 to 15 [inputs, outputs], scales and zeros [groups, outputs].

    symmetric: whether 8 stands for zero in every group.
    """
    import torch

    groups = weight.t().reshape(-1, GROUP, weight.shape[0])
    if symmetric:
        scales = (groups.abs().amax(1, keepdim=True) / 7).half().float()
        zeros = torch.full_like(scales, 8)
    else:
        low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
        scales = ((high - low) / 15).half().float()
        zeros = torch.round(-low / scales).clamp(0, 15)
    values = torch.round(groups / scales + zeros).clamp(0, 15)
    return values.reshape(-1, weight.shape[0]).int(), scales.squeeze(1), zeros.squeeze(1).int()


def _unpacked(weight: "torch.Tensor", symmetric: bool) -> "torch.Tensor":
    """The matrix for which the integers stand: float32 [outputs, inputs]."""
    values, scales, zeros = _split(weight, symmetric)
    grouped = values.reshape(-1, GROUP, weight.shape[0])
    result: torch.Tensor = ((grouped - zeros.unsqueeze(1)) * scales.unsqueeze(1)).reshape(-1, weight.shape[0]).t()
    return result


def _pack(values: "torch.Tensor", order: tuple[int, ...]) -> "torch.Tensor":
    """Pack each eight columns into one int32."""
    import torch

    eights = values.reshape(values.shape[0], -1, 8)
    packed = torch.zeros(eights.shape[:2], dtype=torch.int64)
    for place, column in enumerate(order):
        packed |= eights[:, :, column].long() << (4 * place)
    # Convert to the signed range of int32.
    return torch.where(packed >= 2**31, packed - 2**32, packed).int()


def _awq(name: str, weight: "torch.Tensor") -> "State":
    values, scales, zeros = _split(weight, symmetric=False)
    return {
        f"{name}.qweight": _pack(values, AWQ_ORDER),
        f"{name}.qzeros": _pack(zeros, AWQ_ORDER),
        f"{name}.scales": scales.half(),
    }


def _gptq(name: str, weight: "torch.Tensor") -> "State":
    import torch

    values, scales, zeros = _split(weight, symmetric=True)
    return {
        f"{name}.qweight": _pack(values.t().contiguous(), tuple(range(8))).t().contiguous(),
        # AutoGPTQ stores zeros minus one.
        f"{name}.qzeros": _pack(torch.remainder(zeros - 1, 16), tuple(range(8))),
        f"{name}.scales": scales.half(),
        f"{name}.g_idx": (torch.arange(weight.shape[1]) // GROUP).int(),
    }


def _qwen3() -> ModelParts:
    return decoder("Qwen3ForCausalLM", "qwen3", torch_dtype="float16")


def _is_packed(name: str) -> bool:
    return name.endswith("_proj.weight")


def _write_packed(folder: Path, pack: Callable[[str, Any], "State"], config: dict[str, Any]) -> None:
    model = _qwen3()
    model.config["quantization_config"] = config
    state: State = {}
    for name, tensor in model.state.items():
        state |= pack(name.removesuffix(".weight"), tensor) if _is_packed(name) else {name: tensor.half()}
    model.state = state
    write(folder, model, prompts=QWEN_PROMPTS)


def _write_unpacked(folder: Path, symmetric: bool = False) -> None:
    model = _qwen3()
    model.config["torch_dtype"] = "float32"
    model.state = {
        name: _unpacked(tensor, symmetric) if _is_packed(name) else tensor.half().float()
        for name, tensor in model.state.items()
    }
    write(folder, model, prompts=QWEN_PROMPTS)


AWQ = {"bits": 4, "group_size": GROUP, "quant_method": "awq", "version": "gemm", "zero_point": True}
GPTQ = {
    "bits": 4,
    "group_size": GROUP,
    "quant_method": "gptq",
    "desc_act": False,
    "sym": True,
    "checkpoint_format": "gptq",
}


@case(FAMILY, reference=_write_unpacked)
def qwen3_awq_float32(folder: Path) -> None:
    """The dtype is float32, the default on a CPU."""
    _write_packed(folder, _awq, AWQ)


@case(FAMILY, reference=_write_unpacked, vllm=IN_16_BITS, cosine=BF16_COSINE)
def qwen3_awq(folder: Path) -> None:
    _write_packed(folder, _awq, AWQ)


@case(FAMILY, reference=partial(_write_unpacked, symmetric=True), vllm=IN_16_BITS, cosine=BF16_COSINE)
def qwen3_gptq(folder: Path) -> None:
    _write_packed(folder, _gptq, GPTQ)
