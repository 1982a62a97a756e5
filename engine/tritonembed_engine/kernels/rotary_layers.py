"""The kernels for layers with rotary positions: attention of Qwen3, Qwen2, Llama and Mistral, ModernBERT, and of BERT
with RoPE (NomicBERT, GTE); ModernBERT's norms, and gated feed-forwards.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from tritonembed_engine.kernels import short_attention as short
from tritonembed_engine.kernels import tiled_attention as tiled
from tritonembed_engine.kernels.gate import gelu_gate
from tritonembed_engine.kernels.layer_norm import add_layer_norm, add_then_layer_norm
from tritonembed_engine.kernels.rotary import HEAD_SIZES, Rotary, rotate
from tritonembed_engine.kernels.window_attention import UNLIMITED, window_attention

if TYPE_CHECKING:
    from tritonembed_engine.kernels.install import Kernels

Attention = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From hidden states [tokens, width] and positions [tokens] to what the layer adds to the residual."""


def rotary_attention_layer(module: Any, kernels: "Kernels", *, ours: bool) -> Attention | None:
    """Attention with the norms and the rotation as one kernel, or None if the layer is of another kind.

    ours: whether our attention serves, too.
    """
    rotary, window = rotary_of(module, kernels.tables), window_of(module, causal=kernels.causal)
    if rotary is None or window is None:
        return None
    packed, merge = packed_of(module), merge_of(module)
    heads = module.num_heads
    key_heads = getattr(module, "num_kv_heads", heads)
    widths = [size * module.head_dim for size in (heads, key_heads, key_heads)]
    everywhere = window == (UNLIMITED, UNLIMITED) and key_heads == heads

    def attend(qkv: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        cu_seqlens, longest = kernels.cu_seqlens, kernels.longest
        rotate(qkv, positions, heads, key_heads, rotary)
        if ours and cu_seqlens is not None:
            if everywhere and short.LONGEST < longest <= tiled.LONGEST:
                return tiled.tiled_attention(qkv, cu_seqlens, heads, longest, module.scaling)
            # For longer sentences FlashAttention's causal attention is faster.
            if longest <= (short.LONGEST if kernels.causal else tiled.LONGEST):
                return window_attention(qkv, cu_seqlens, heads, key_heads, longest, module.scaling, window)
        attended: torch.Tensor = module.attn(*qkv.split(widths, dim=-1))
        return attended

    def forward(hidden_states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        qkv, _ = packed(hidden_states)
        merged, _ = merge(attend(qkv, positions))
        return merged

    return forward


def decoder_attention(module: Any, kernels: "Kernels", *, ours: bool) -> Callable[..., torch.Tensor] | None:
    """Attention of Qwen3, Qwen2, Llama, Mistral, and of BERT with RoPE."""
    attention = rotary_attention_layer(module, kernels, ours=ours)
    return attention and (lambda positions, hidden_states: attention(hidden_states, positions))


def modernbert_attention(module: Any, kernels: "Kernels", *, ours: bool) -> Callable[..., torch.Tensor] | None:
    """ModernBERT's attention."""
    attention = rotary_attention_layer(module, kernels, ours=ours)
    return attention and (lambda hidden_states, position_ids: attention(hidden_states, position_ids))


def packed_of(module: Any) -> Any:
    """An attention layer's product of queries, keys and values."""
    return module.Wqkv if hasattr(module, "Wqkv") else module.qkv_proj


def merge_of(module: Any) -> Any:
    """An attention layer's product after attention."""
    return next(getattr(module, name) for name in ("o_proj", "out_proj", "Wo") if hasattr(module, name))


def rotary_of(module: Any, tables: dict[int, torch.Tensor]) -> Rotary | None:
    """What an attention layer does to its queries and keys.

    None for other rotations: of a part of the head, of adjacent pairs, by several positions per token.

    tables: see `Kernels`.
    """
    from vllm.model_executor.layers.layernorm import RMSNorm
    from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

    rotary, size = module.rotary_emb, module.head_dim
    known = isinstance(rotary, RotaryEmbedding) and type(rotary).forward_cuda is RotaryEmbedding.forward_cuda
    if not known or rotary.rotary_dim != size or not rotary.is_neox_style or size not in HEAD_SIZES:
        return None
    if id(rotary) not in tables:
        # Computed again, because vLLM has rounded its table to 16 bits.
        table = rotary._compute_cos_sin_cache()
        tables[id(rotary)] = table.to(device=rotary.cos_sin_cache.device, dtype=torch.float32).contiguous()
    table = tables[id(rotary)]
    norms = [getattr(module, name) for name in ("q_norm", "k_norm") if hasattr(module, name)]
    if not norms:
        return Rotary(table)
    if len(norms) < 2 or not all(type(norm) is RMSNorm and norm.weight.shape == (size,) for norm in norms):
        return None
    return Rotary(table, torch.stack([norm.weight for norm in norms]).float(), norms[0].variance_epsilon)


def window_of(module: Any, *, causal: bool) -> tuple[int, int] | None:
    """The numbers of tokens before and after to which a token attends; None for attention of another kind."""
    attention = module.attn.impl
    if getattr(attention, "sinks", None) is not None or attention.alibi_slopes is not None or attention.logits_soft_cap:
        return None
    window = attention.sliding_window
    # On a CPU it is the number of tokens on each side to which a token attends, itself included.
    before, after = window if isinstance(window, tuple) else (window - 1, window - 1) if window > 0 else (-1, -1)
    return UNLIMITED if before < 0 else before, 0 if causal else UNLIMITED if after < 0 else after


def gated_feed_forward(module: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """ModernBERT's feed-forward, with exact GELU times gate as one kernel."""
    from transformers.activations import GELUActivation

    if type(module.act) is not GELUActivation or module.act.act is not torch.nn.functional.gelu:
        return None

    def forward(hidden_states: torch.Tensor) -> torch.Tensor:
        wide = module.Wi(hidden_states)
        narrowed, _ = module.Wo(gelu_gate(wide[0] if isinstance(wide, tuple) else wide))
        return narrowed

    return forward


def modernbert_layers(module: Any, kernels: "Kernels") -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """ModernBERT's stack of layers, with each residual add and the norm after it in one kernel."""
    layers = list(module.layers)
    # After each layer but the last: the norm of the next layer's attention.
    norms = [*(_biased(layer.attn_norm) for layer in layers[1:]), None]
    middles = [_biased(layer.mlp_norm) for layer in layers]

    def forward(hidden_states: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        hidden, normed = hidden_states, layers[0].attn_norm(hidden_states)
        for layer, middle, norm in zip(layers, middles, norms, strict=True):
            if norm is None and kernels.rows is not None:
                return layer(hidden, position_ids)
            attended = layer.attn(hidden_states=normed, position_ids=position_ids)
            hidden, normed = add_then_layer_norm(attended, hidden, middle)
            added = layer.mlp(normed)
            if norm is None:
                return hidden + added
            hidden, normed = add_then_layer_norm(added, hidden, norm)
        raise AssertionError("the last layer has no norm after it")

    return forward


def rotary_block(module: Any) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A layer of BERT with RoPE, with each residual add and the norm after it in one kernel."""

    def forward(positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden = add_layer_norm(module.attn(positions, hidden_states), hidden_states, module.attn_ln)
        return add_layer_norm(module.mlp(hidden), hidden, module.mlp_ln)

    return forward


def _biased(norm: torch.nn.LayerNorm) -> torch.nn.LayerNorm:
    """The norm with a bias: its own, or zeros."""
    if norm.bias is not None:
        return norm
    twin = torch.nn.LayerNorm(norm.normalized_shape, norm.eps, device=norm.weight.device, dtype=norm.weight.dtype)
    twin.weight = norm.weight
    return twin
