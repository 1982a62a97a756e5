"""Put the fused kernels into a model that vLLM loaded: which kernel replaces which layer of which family.

Only the steps between the matrix products are replaced; vLLM's layers keep their weights. Each kernel has its switch in
model.json (`engine.kernels`), and the result is compared with vLLM's own before it serves (`agreement.py`).
"""

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from tritonembed_engine.kernels import bert, last_layer, rotary_layers
from tritonembed_engine.settings import KernelSettings

logger = logging.getLogger(__name__)

_READING = ("gelu_epilogue", "embed_layer_norm", "fp8")
"""Switches of kernels that read a layer's weights themselves."""


class Kernels:
    """The kernels in a model. `cu_seqlens` and `longest` describe the next batch.

    cu_seqlens: int32 [sentences + 1] on the device. longest: tokens of the longest sentence. causal: whether a token
    attends only to itself and the tokens before it.
    """

    def __init__(self, *, causal: bool = False) -> None:
        self.causal = causal
        self.cu_seqlens: torch.Tensor | None = None
        self.longest = 0
        self.rows: torch.Tensor | None = None
        """int64 [sentences], the only token of each sentence whose hidden state the batch needs; None: all are needed.
        Only to be set if `computes_rows`: the model's hidden states are then those of the rows."""
        self.computes_rows = False
        self.tables: dict[int, torch.Tensor] = {}
        """Cosines and sines of rotary positions, by the id of vLLM's module, which layers share."""
        self._replaced: list[Any] = []
        self.reading: list[Any] = []
        """Modules whose new forward reads the weights of the layers inside instead of calling the layers."""

    def replace(self, module: Any, forward: Callable[..., torch.Tensor], *, reads: bool) -> None:
        """Shadow a module's forward method. reads: see `reading`."""
        if "forward" not in vars(module):
            self._replaced.append(module)
        module.forward = forward
        if reads:
            self.reading.append(module)

    def remove(self) -> None:
        """Undo every replacement."""
        for module in self._replaced:
            del module.forward
        self._replaced.clear()
        self.reading.clear()
        self.computes_rows = False


def install_kernels(
    model: torch.nn.Module, dtype: torch.dtype, settings: KernelSettings, *, causal: bool = False
) -> Kernels:
    """Replace the forward methods of the layers that the kernels serve, and log them; 16-bit types only.

    To be called within vLLM's configuration (`OpenModel.config`). causal: see `Kernels`.
    """
    kernels = Kernels(causal=causal)
    if dtype not in (torch.bfloat16, torch.float16):
        return kernels

    def decoder(module: Any) -> Callable[..., torch.Tensor] | None:
        return rotary_layers.decoder_attention(module, kernels, ours=settings.attention)

    def encoder(module: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
        return bert.encoder_in_fp8(module, model, kernels, dtype, ours=settings.attention)

    # vLLM's file and class of the layer, its switch, and a function that makes the forward to replace its own.
    replacements: dict[str, tuple[str, Callable[[Any], Any]]] = {
        "bert.BertSelfAttention": ("attention", lambda module: bert.attention_layer(module, kernels)),
        "bert.BertSelfOutput": ("add_layer_norm", bert.residual_output),
        "bert.BertOutput": ("add_layer_norm", bert.residual_output),
        "bert.BertIntermediate": ("gelu_epilogue", bert.gelu_intermediate),
        "bert.BertEmbedding": ("embed_layer_norm", lambda module: bert.embedding(module, 0)),
        "roberta.RobertaEmbedding": ("embed_layer_norm", lambda m: bert.embedding(m, m.padding_idx + 1)),
        "bert.BertEncoder": ("fp8", encoder),
        "bert_with_rope.BertWithRopeAttention": ("rotary", decoder),
        "bert_with_rope.BertWithRopeBlock": ("add_layer_norm", rotary_layers.rotary_block),
        "modernbert.ModernBertAttention": (
            "rotary",
            lambda module: rotary_layers.modernbert_attention(module, kernels, ours=settings.attention),
        ),
        "modernbert.ModernBertMLP": ("gelu_gate", rotary_layers.gated_feed_forward),
        "modernbert.ModernBertEncoderLayer": (
            "add_layer_norm",
            lambda module: rotary_layers.modernbert_layers(module, kernels),
        ),
        "qwen3.Qwen3Attention": ("rotary", decoder),
        "qwen2.Qwen2Attention": ("rotary", decoder),
        "llama.LlamaAttention": ("rotary", decoder),
    }
    installed: Counter[str] = Counter()
    try:
        for module in model.modules():
            switch, replacement = replacements.get(_name_of(module), (None, None))
            if switch is None or replacement is None or not getattr(settings, switch):
                continue
            if (forward := replacement(module)) is not None:
                kernels.replace(module, forward, reads=switch in _READING)
                installed[switch] += 1
        if settings.pooled_rows and not installed["fp8"] and _compute_rows(model, kernels):
            installed["pooled_rows"] += 1
    except BaseException:
        kernels.remove()
        raise
    if installed:
        logger.warning("kernels: %s", ", ".join(f"{switch} in {count}" for switch, count in installed.items()))
    return kernels


def _compute_rows(model: torch.nn.Module, kernels: Kernels) -> bool:
    """After all other replacements: let the last layer compute the pooled rows alone. Returns whether it can."""
    layers: dict[str, Callable[[Any, Kernels], Any]] = {
        "bert.BertLayer": last_layer.bert_layer,
        "bert_with_rope.BertWithRopeBlock": last_layer.rotary_bert_layer,
        "modernbert.ModernBertLayer": last_layer.modernbert_layer,
        "qwen3.Qwen3DecoderLayer": last_layer.decoder_layer,
        "qwen2.Qwen2DecoderLayer": last_layer.decoder_layer,
        "llama.LlamaDecoderLayer": last_layer.decoder_layer,
    }
    found = [(module, layers[name]) for module in model.modules() if (name := _name_of(module)) in layers]
    if found:
        module, replacement = found[-1]
        if (forward := replacement(module, kernels)) is not None:
            kernels.replace(module, forward, reads=False)
            kernels.computes_rows = True
    return kernels.computes_rows


def _name_of(module: torch.nn.Module) -> str:
    """vLLM's file and class of a layer."""
    return f"{type(module).__module__.rpartition('.')[2]}.{type(module).__name__}"
