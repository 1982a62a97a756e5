"""A model's last layer for the tokens that CLS and last-token pooling read: one per sentence.

Keys and values are of all tokens; queries, attention's output product and the feed-forward are of one token per
sentence. The forwards here act if `Kernels.rows` is set; otherwise the layer's own forward runs.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from tritonembed_engine.kernels.pooled_attention import pooled_attention
from tritonembed_engine.kernels.rotary import rotate
from tritonembed_engine.kernels.rotary_layers import merge_of, packed_of, rotary_of, window_of
from tritonembed_engine.kernels.short_attention import HEAD_SIZES
from tritonembed_engine.kernels.window_attention import UNLIMITED

if TYPE_CHECKING:
    from tritonembed_engine.kernels.install import Kernels

Project = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""From hidden states [tokens, width] and rows [sentences] to queries of the rows, and keys and values of all tokens."""

Attention = Callable[[torch.Tensor, torch.Tensor | None, torch.Tensor], torch.Tensor]
"""From hidden states [tokens, width], positions [tokens] and rows [sentences] to [sentences, heads x head size]."""


def bert_layer(module: Any, kernels: "Kernels") -> Callable[[torch.Tensor], torch.Tensor] | None:
    """For vLLM's BertLayer."""
    attention = _attention(module.attention.self, kernels, rotates=False)
    if attention is None:
        return None
    attend, whole = attention, module.forward

    def forward(hidden_states: torch.Tensor) -> torch.Tensor:
        rows = kernels.rows
        if rows is None:
            return whole(hidden_states)
        hidden = module.attention.output(attend(hidden_states, None, rows), hidden_states[rows])
        pooled: torch.Tensor = module.output(module.intermediate(hidden), hidden)
        return pooled

    return forward


def rotary_bert_layer(module: Any, kernels: "Kernels") -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
    """For vLLM's BertWithRopeBlock."""
    attention = _merged(module.attn, kernels)
    if attention is None:
        return None
    attend, whole = attention, module.forward

    def forward(positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        rows = kernels.rows
        if rows is None:
            return whole(positions, hidden_states)
        hidden = module.attn_ln(hidden_states[rows] + attend(hidden_states, positions, rows))
        pooled: torch.Tensor = module.mlp_ln(hidden + module.mlp(hidden))
        return pooled

    return forward


def modernbert_layer(module: Any, kernels: "Kernels") -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
    """For vLLM's ModernBertLayer."""
    attention = _merged(module.attn, kernels)
    if attention is None:
        return None
    attend, whole = attention, module.forward

    def forward(hidden_states: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        rows = kernels.rows
        if rows is None:
            return whole(hidden_states, position_ids)
        hidden = hidden_states[rows] + attend(module.attn_norm(hidden_states), position_ids, rows)
        pooled: torch.Tensor = hidden + module.mlp(module.mlp_norm(hidden))
        return pooled

    return forward


def decoder_layer(module: Any, kernels: "Kernels") -> Callable[..., tuple[torch.Tensor, torch.Tensor]] | None:
    """For vLLM's layers of Qwen3, Qwen2, Llama and Mistral."""
    attention = _merged(module.self_attn, kernels)
    if attention is None:
        return None
    attend, whole = attention, module.forward

    def forward(
        positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = kernels.rows
        if rows is None:
            return whole(positions, hidden_states, residual)  # type: ignore[no-any-return]
        if residual is None:
            normed, residual = module.input_layernorm(hidden_states), hidden_states
        else:
            normed, residual = module.input_layernorm(hidden_states, residual)
        merged = attend(normed, positions, rows)
        hidden, residual = module.post_attention_layernorm(merged, residual[rows])
        return module.mlp(hidden), residual

    return forward


def _merged(module: Any, kernels: "Kernels") -> Attention | None:
    """Attention with rotary positions and its output product."""
    attention = _attention(module, kernels, rotates=True)
    if attention is None:
        return None
    attend, merge = attention, merge_of(module)

    def forward(hidden: torch.Tensor, positions: torch.Tensor | None, rows: torch.Tensor) -> torch.Tensor:
        merged, _ = merge(attend(hidden, positions, rows))
        return merged

    return forward


def _attention(module: Any, kernels: "Kernels", *, rotates: bool) -> Attention | None:
    """Attention of the rows; None if the layer is of another kind. rotates: whether the layer has rotary positions."""
    # BERT's attention has neither a window nor soft caps.
    window = window_of(module, causal=kernels.causal) if rotates else (UNLIMITED, UNLIMITED)
    rotary = rotary_of(module, kernels.tables) if rotates else None
    if window is None or (rotates and rotary is None) or module.head_dim not in HEAD_SIZES:
        return None
    heads = module.num_heads
    key_heads = getattr(module, "num_kv_heads", heads)
    project = _project(packed_of(module), heads * module.head_dim)

    def attend(hidden: torch.Tensor, positions: torch.Tensor | None, rows: torch.Tensor) -> torch.Tensor:
        assert kernels.cu_seqlens is not None
        queries, keys_values = project(hidden, rows)
        if rotary is not None and positions is not None:
            rotate(queries, positions[rows], heads, 0, rotary)
            rotate(keys_values, positions, 0, key_heads, rotary)
        return pooled_attention(
            queries, keys_values, kernels.cu_seqlens, rows, heads, key_heads, module.scaling, window
        )

    return attend


def _project(packed: Any, width: int) -> Project:
    """packed: vLLM's product of queries, keys and values. width: of the queries.

    Only plain weights can be divided. With other weights the queries of all tokens are computed, too.
    """
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod

    weight, bias = getattr(packed, "weight", None), packed.bias
    plain = isinstance(packed.quant_method, UnquantizedLinearMethod)
    # On a CPU vLLM keeps only its own form of the weights.
    if not plain or weight is None or weight.shape != (packed.output_size, packed.input_size):

        def take(hidden: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            qkv, _ = packed(hidden)
            return qkv[rows, :width], qkv[:, width:]

        return take
    biases = (None, None) if bias is None else (bias[:width], bias[width:])
    of_queries, of_others = (weight[:width], biases[0]), (weight[width:], biases[1])

    def divide(hidden: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        linear = torch.nn.functional.linear
        return linear(hidden[rows], *of_queries), linear(hidden, *of_others)

    return divide
