"""The kernels in BERT, RoBERTa and XLM-R. They replace only the steps between the matrix products."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from tritonembed_engine.kernels import short_attention as short
from tritonembed_engine.kernels import tiled_attention as tiled
from tritonembed_engine.kernels.bert_fp8 import fp8_encoder
from tritonembed_engine.kernels.layer_norm import add_layer_norm, embed_layer_norm
from tritonembed_engine.kernels.quantize import quantize

if TYPE_CHECKING:
    from tritonembed_engine.kernels.install import Kernels


def encoder_in_fp8(
    module: Any, model: torch.nn.Module, kernels: "Kernels", dtype: torch.dtype, *, ours: bool
) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """A forward for vLLM's BertEncoder of quantized layers.

    dtype: of the hidden states. ours: whether our attention serves, too.
    """

    def attention_of(layer: Any, fp8_scale: float) -> Callable[[torch.Tensor], torch.Tensor]:
        return _attend(layer, kernels, ours and _serves(layer), fp8_scale)

    embeddings = ("BertEmbedding", "RobertaEmbedding")
    norms = [one.LayerNorm for one in model.modules() if type(one).__name__ in embeddings]
    return fp8_encoder(module, norms[0], attention_of, dtype) if norms else None


def attention_layer(module: Any, kernels: "Kernels") -> Callable[[torch.Tensor], torch.Tensor] | None:
    if not _serves(module):
        return None
    attend = _attend(module, kernels)

    def forward(hidden_states: torch.Tensor) -> torch.Tensor:
        qkv, _ = module.qkv_proj(hidden_states)
        return attend(qkv)

    return forward


def _serves(module: Any) -> bool:
    return module.head_dim in short.HEAD_SIZES and bool(module.num_kv_heads == module.num_heads)


def _attend(
    module: Any, kernels: "Kernels", ours: bool = True, fp8_scale: float | None = None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Attention from packed queries, keys and values. vLLM's own attention serves very long sentences.

    fp8_scale: if given, the result is divided by it and in fp8.
    """

    def attend(qkv: torch.Tensor) -> torch.Tensor:
        if not ours or kernels.cu_seqlens is None or kernels.longest > tiled.LONGEST:
            q, k, v = qkv.split([module.q_size, module.kv_size, module.kv_size], dim=-1)
            attended: torch.Tensor = module.attn(q, k, v)
            return attended if fp8_scale is None else quantize(attended.contiguous(), fp8_scale)
        one_tile = kernels.longest <= short.LONGEST
        attention = short.short_attention if one_tile else tiled.tiled_attention
        return attention(qkv, kernels.cu_seqlens, module.num_heads, kernels.longest, module.scaling, fp8_scale)

    return attend


def residual_output(module: Any) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    def forward(hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> torch.Tensor:
        projected, _ = module.dense(hidden_states)
        return add_layer_norm(projected, input_tensor, module.LayerNorm)

    return forward


def gelu_intermediate(module: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """GELU in the product's epilogue (cuBLASLt's tanh form: within 1e-3 of the erf form, below bf16's step)."""
    from vllm.model_executor.layers.activation import get_act_fn
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod

    exact_gelu = type(module.intermediate_act_fn) is type(get_act_fn("gelu"))
    if not exact_gelu or not isinstance(module.dense.quant_method, UnquantizedLinearMethod):
        return None
    transposed = module.dense.weight.t()

    def forward(hidden_states: torch.Tensor) -> torch.Tensor:
        activated: torch.Tensor = torch._addmm_activation(module.dense.bias, hidden_states, transposed, use_gelu=True)
        return activated

    return forward


def embedding(module: Any, first_position: int) -> Callable[..., torch.Tensor]:
    word_embeddings, position_embeddings = module.word_embeddings.weight, module.position_embeddings.weight
    token_types, norm = module.token_type_embeddings.weight, module.LayerNorm

    def forward(input_ids: torch.Tensor, position_ids: torch.Tensor, **_: object) -> torch.Tensor:
        return embed_layer_norm(
            input_ids, position_ids, word_embeddings, position_embeddings, token_types, norm, first_position
        )

    return forward
