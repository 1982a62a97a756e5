"""BERT's encoder over fp8 products: every quantization rides on the kernel before it.

vLLM loads and quantizes the weights (`quantization="fp8"`); a layer here is four products, and between them attention,
GELU and two residual LayerNorms that hand their result on in fp8 with one scale a row.
"""

from collections.abc import Callable
from typing import Any

import torch

from tritonembed_engine.kernels.quantize import Quantized, add_layer_norm_quantize, quantize_rows

Attend = Callable[[torch.Tensor], torch.Tensor]
Product = Callable[[Quantized], torch.Tensor]


def fp8_encoder(
    encoder: Any, attention_of: Callable[[Any], Attend], dtype: torch.dtype
) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """A forward for vLLM's BertEncoder, or None where its layers are not plain fp8 products with exact GELU.

    attention_of: from a BertSelfAttention, a function from its packed queries, keys and values to what it attends to.
    dtype: of the hidden states.
    """
    from vllm.model_executor.layers.activation import get_act_fn

    exact_gelu = type(get_act_fn("gelu"))
    layers: list[tuple[list[Product], Attend, Any, Any]] = []
    for layer in encoder.layer:
        block, down = layer.attention, layer.output
        modules = (block.self.qkv_proj, block.output.dense, layer.intermediate.dense, down.dense)
        products = [product for module in modules if (product := _product(module, dtype))]
        if type(layer.intermediate.intermediate_act_fn) is not exact_gelu or len(products) < len(modules):
            return None
        layers.append((products, attention_of(block.self), block.output.LayerNorm, down.LayerNorm))

    def forward(hidden_states: torch.Tensor) -> torch.Tensor:
        hidden, quantized = hidden_states, quantize_rows(hidden_states)
        for (project, merge, widen, narrow), attend, first_norm, second_norm in layers:
            attended = quantize_rows(attend(project(quantized)))
            hidden, quantized = add_layer_norm_quantize(merge(attended), hidden, first_norm)
            widened = quantize_rows(widen(quantized), gelu=True)
            hidden, quantized = add_layer_norm_quantize(narrow(widened), hidden, second_norm)
        return hidden

    return forward


def _product(module: Any, dtype: torch.dtype) -> Product | None:
    """x W^T + b with the fp8 weight that vLLM made; None where it has another form (blocks, static input scales)."""
    weight, scale = module.weight, getattr(module, "weight_scale", None)
    inputs, outputs = module.input_size, module.output_size
    plain = weight.dtype == torch.float8_e4m3fn and weight.shape == (inputs, outputs) and weight.stride(0) == 1
    if (
        not plain
        or scale is None
        or scale.numel() not in (1, outputs)
        or getattr(module, "input_scale", None) is not None
    ):
        return None
    columns = scale.float().reshape(1, -1).expand(1, outputs).contiguous()
    bias = module.bias

    def product(x: Quantized) -> torch.Tensor:
        out: torch.Tensor = torch._scaled_mm(
            x[0], weight, scale_a=x[1], scale_b=columns, bias=bias, out_dtype=dtype, use_fast_accum=True
        )
        return out

    return product
