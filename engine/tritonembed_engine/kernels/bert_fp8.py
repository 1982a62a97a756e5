"""BERT's encoder with fp8 products. Each quantization is fused into the kernel before it.

vLLM loads and quantizes the weights (`quantization="fp8"`). A layer here is four products, and between them attention,
GELU and two residual LayerNorms, whose results are in fp8 with scales that follow from the weights.
"""

from collections.abc import Callable
from typing import Any

import torch

from tritonembed_engine.kernels.gelu_product import gelu_product, gelu_product_serves
from tritonembed_engine.kernels.layer_norm import add_layer_norm_quantize
from tritonembed_engine.kernels.quantize import norm_scale, product_scale, quantize

Attend = Callable[[torch.Tensor], torch.Tensor]
Layer = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""From a layer's hidden states, also in fp8, to the next layer's."""


def fp8_encoder(
    encoder: Any,
    embedding_norm: torch.nn.LayerNorm,
    attention_of: Callable[[Any, float], Attend],
    dtype: torch.dtype,
) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """A forward for vLLM's BertEncoder, or None if its layers are not plain fp8 products with exact GELU.

    embedding_norm: the LayerNorm before the first layer. attention_of: from a BertSelfAttention and a scale to a
    function from packed queries, keys and values to attention's result in fp8, divided by the scale. dtype: of the
    hidden states.
    """
    layers: list[Layer] = []
    norm = embedding_norm
    for module in encoder.layer:
        if not _serves(module):
            return None
        layers.append(_layer(module, norm, attention_of, dtype))
        norm = module.output.LayerNorm
    first_scale = norm_scale(embedding_norm)

    def forward(hidden_states: torch.Tensor) -> torch.Tensor:
        hidden, quantized = hidden_states, quantize(hidden_states, first_scale)
        for layer in layers:
            hidden, quantized = layer(hidden, quantized)
        return hidden

    return forward


def _layer(
    layer: Any, norm: torch.nn.LayerNorm, attention_of: Callable[[Any, float], Attend], dtype: torch.dtype
) -> Layer:
    """norm: the LayerNorm before the layer."""
    attention, output = layer.attention, layer.output
    middle_norm, last_norm = attention.output.LayerNorm, output.LayerNorm
    packed, wide = attention.self.qkv_proj, layer.intermediate.dense
    values = slice(attention.self.q_size + attention.self.kv_size, None)
    attended_scale = product_scale(norm, _real(packed)[:, values], None if packed.bias is None else packed.bias[values])
    middle_scale, wide_scale = norm_scale(middle_norm), product_scale(middle_norm, _real(wide), wide.bias)
    last_scale = norm_scale(last_norm)

    attend = attention_of(attention.self, attended_scale)
    project = fp8_product(packed, norm_scale(norm), dtype)
    merge = fp8_product(attention.output.dense, attended_scale, dtype)
    widen = _widen(wide, middle_scale, wide_scale, dtype)
    narrow = fp8_product(output.dense, wide_scale, dtype)

    def forward(hidden: torch.Tensor, quantized: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        merged = merge(attend(project(quantized)))
        hidden, quantized = add_layer_norm_quantize(merged, hidden, middle_norm, middle_scale)
        narrowed = narrow(widen(quantized))
        return add_layer_norm_quantize(narrowed, hidden, last_norm, last_scale)

    return forward


def _serves(layer: Any) -> bool:
    """Whether vLLM quantized the weights at load: no blocks, and no input scales of a checkpoint."""
    from vllm.model_executor.layers.activation import get_act_fn

    def plain(module: Any) -> bool:
        weight, scale = getattr(module, "weight", None), getattr(module, "weight_scale", None)
        inputs, outputs = module.input_size, module.output_size
        return (
            weight is not None
            and weight.dtype == torch.float8_e4m3fn
            and weight.shape == (inputs, outputs)
            and weight.stride(0) == 1
            and inputs % 16 == outputs % 16 == 0
            and scale is not None
            and scale.numel() in (1, outputs)
            and getattr(module, "input_scale", None) is None
        )

    attention = layer.attention
    modules = (attention.self.qkv_proj, attention.output.dense, layer.intermediate.dense, layer.output.dense)
    return type(layer.intermediate.intermediate_act_fn) is type(get_act_fn("gelu")) and all(map(plain, modules))


def _real(module: Any) -> torch.Tensor:
    """The weights' real values, [inputs, outputs]."""
    values: torch.Tensor = module.weight.float() * module.weight_scale.float().reshape(1, -1)
    return values


def fp8_product(module: Any, scale: float, dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    """x W^T + b in 16 bits, of an x in fp8 with this scale."""
    weight, bias, weight_scale = module.weight, module.bias, module.weight_scale.float().reshape(1, -1).contiguous()
    input_scale = torch.full((1, 1), scale, device=weight.device)
    by_column = weight_scale.numel() > 1

    def product(x: torch.Tensor) -> torch.Tensor:
        # torch takes one scale per side, or one per row and column.
        scale_a = input_scale.expand(len(x), 1).contiguous() if by_column else input_scale
        out: torch.Tensor = torch._scaled_mm(
            x, weight, scale_a=scale_a, scale_b=weight_scale, bias=bias, out_dtype=dtype, use_fast_accum=True
        )
        return out

    return product


def _widen(module: Any, scale: float, out_scale: float, dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    """GELU of the product of an x with this scale, in fp8 with `out_scale`."""
    if module.bias is None or not gelu_product_serves(module.weight.device):
        product = fp8_product(module, scale, dtype)
        return lambda x: quantize(product(x), out_scale, gelu=True)
    weight, bias = module.weight.t(), module.bias
    scales = (module.weight_scale.float() * scale).reshape(-1).expand(len(weight)).contiguous()
    return lambda x: gelu_product(x, weight, scales, bias, out_scale)
