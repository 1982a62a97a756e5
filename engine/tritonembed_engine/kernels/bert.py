"""Put the fused kernels into a BERT-shaped model that vLLM loaded: BERT, RoBERTa, XLM-R.

Only the steps between the matrix products are replaced; vLLM's layers keep their weights. Each kernel has its switch in
model.json (`engine.kernels`), and the result is compared with vLLM's own before it serves (`agreement.py`).
"""

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from tritonembed_engine.kernels import short_attention as short
from tritonembed_engine.kernels import tiled_attention as tiled
from tritonembed_engine.kernels.bert_fp8 import fp8_encoder
from tritonembed_engine.kernels.layer_norm import add_layer_norm, embed_layer_norm
from tritonembed_engine.kernels.quantize import quantize
from tritonembed_engine.settings import KernelSettings

logger = logging.getLogger(__name__)

_READING = ("gelu_epilogue", "embed_layer_norm", "fp8")
"""Switches of kernels that take the weights of a layer themselves."""


class Kernels:
    """The kernels in a model; `cu_seqlens` and `longest` describe the batch that runs next.

    cu_seqlens: int32 [sentences + 1] on the device. longest: tokens of the longest sentence.
    """

    def __init__(self) -> None:
        self.cu_seqlens: torch.Tensor | None = None
        self.longest = 0
        self._replaced: list[Any] = []
        self.reading: list[Any] = []
        """Modules whose new forward reads the weights of the layers inside instead of calling these."""

    def replace(self, module: Any, forward: Callable[..., torch.Tensor], *, reads: bool) -> None:
        """Shadow a module's forward method. reads: see `reading`."""
        module.forward = forward
        self._replaced.append(module)
        if reads:
            self.reading.append(module)

    def remove(self) -> None:
        """Undo every replacement."""
        for module in self._replaced:
            del module.forward
        self._replaced.clear()
        self.reading.clear()


def install_kernels(model: torch.nn.Module, dtype: torch.dtype, settings: KernelSettings) -> Kernels:
    """Replace the forward methods of the layers that the kernels serve, and log them; 16-bit types only.

    To be called within vLLM's configuration (`OpenModel.config`).
    """
    from vllm.model_executor.models import bert, roberta

    kernels = Kernels()
    if dtype not in (torch.bfloat16, torch.float16):
        return kernels
    embeddings = (bert.BertEmbedding, roberta.RobertaEmbedding)

    def attention_of(module: Any, fp8_scale: float) -> Callable[[torch.Tensor], torch.Tensor]:
        return _attend(module, kernels, settings.attention and _serves(module), fp8_scale)

    def encoder(module: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
        norms = [one.LayerNorm for one in model.modules() if type(one) in embeddings]
        return fp8_encoder(module, norms[0], attention_of, dtype) if norms else None

    # The layer, its switch, and a function that makes the forward to replace its own.
    replacements: list[tuple[type, str, Callable[[Any], Any]]] = [
        (bert.BertSelfAttention, "attention", lambda module: _attention(module, kernels)),
        (bert.BertSelfOutput, "add_layer_norm", _output),
        (bert.BertOutput, "add_layer_norm", _output),
        (bert.BertIntermediate, "gelu_epilogue", _intermediate),
        (bert.BertEmbedding, "embed_layer_norm", lambda module: _embedding(module, 0)),
        (roberta.RobertaEmbedding, "embed_layer_norm", lambda m: _embedding(m, m.padding_idx + 1)),
        (bert.BertEncoder, "fp8", encoder),
    ]
    installed: Counter[str] = Counter()
    try:
        for module in model.modules():
            for layer, switch, replacement in replacements:
                if getattr(settings, switch) and type(module) is layer and (forward := replacement(module)) is not None:
                    kernels.replace(module, forward, reads=switch in _READING)
                    installed[switch] += 1
    except BaseException:
        kernels.remove()
        raise
    if installed:
        logger.warning("kernels: %s", ", ".join(f"{switch} in {count}" for switch, count in installed.items()))
    return kernels


def _attention(module: Any, kernels: Kernels) -> Callable[[torch.Tensor], torch.Tensor] | None:
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
    module: Any, kernels: Kernels, ours: bool = True, fp8_scale: float | None = None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Attention from packed queries, keys and values; vLLM's for very long sentences.

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


def _output(module: Any) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    def forward(hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> torch.Tensor:
        projected, _ = module.dense(hidden_states)
        return add_layer_norm(projected, input_tensor, module.LayerNorm)

    return forward


def _intermediate(module: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
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


def _embedding(module: Any, first_position: int) -> Callable[..., torch.Tensor]:
    word_embeddings, position_embeddings = module.word_embeddings.weight, module.position_embeddings.weight
    token_types, norm = module.token_type_embeddings.weight, module.LayerNorm

    def forward(input_ids: torch.Tensor, position_ids: torch.Tensor, **_: object) -> torch.Tensor:
        return embed_layer_norm(
            input_ids, position_ids, word_embeddings, position_embeddings, token_types, norm, first_position
        )

    return forward
