"""JinaBERT v2 in plain torch, for the transformers executor: the hub's class is code that is not run.

Modules have the names of the checkpoint's tensors.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from tritonembed_engine.errors import ModelError
from tritonembed_engine.model.checkpoint import UNUSED, check_complete, checkpoint_files, tensors_of

MOST_BIAS = 1 << 24
"""Elements of the bias that exist at a time. The whole bias of 8,192 tokens and 12 heads has 48 times as many."""


class JinaBert(nn.Module):  # type: ignore[misc]
    """The encoder."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """config: config.json, as `check_jina_bert` accepts it."""
        super().__init__()
        width, eps = config["hidden_size"], config.get("layer_norm_eps", 1e-12)
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(config["vocab_size"], width),
                "token_type_embeddings": nn.Embedding(config.get("type_vocab_size", 2), width),
                "LayerNorm": nn.LayerNorm(width, eps=eps),
            }
        )
        heads, inner = config["num_attention_heads"], config["intermediate_size"]
        layers = [_Layer(width, heads, inner, eps) for _ in range(config["num_hidden_layers"])]
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})
        self.register_buffer("slopes", torch.tensor(slopes_of(heads)), persistent=False)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> SimpleNamespace:
        """`last_hidden_state`, [sentences, tokens, width]. input_ids: [sentences, tokens]. attention_mask: the same
        shape, 0 for padding; None: no padding."""
        token_type = self.embeddings["token_type_embeddings"].weight[0]
        hidden = self.embeddings["LayerNorm"](self.embeddings["word_embeddings"](input_ids) + token_type)
        bias = Bias(self.slopes, attention_mask, input_ids.shape, hidden.dtype)
        for layer in self.encoder["layer"]:
            hidden = layer(hidden, bias)
        return SimpleNamespace(last_hidden_state=hidden)


class Bias:
    """What is added to the attention scores: minus slope times distance, and minus infinity for padding.

    It is made in blocks of queries: for a long text the whole would take gigabytes.
    """

    def __init__(self, slopes: torch.Tensor, mask: torch.Tensor | None, shape: torch.Size, dtype: torch.dtype) -> None:
        """slopes: float32 [heads]. mask: [sentences, tokens], or None. shape: of the ids."""
        self._slopes, self._dtype = slopes, dtype
        self._padding = None if mask is None else (mask == 0)[:, None, None, :]
        sentences, tokens = shape
        rows = MOST_BIAS // (tokens * len(slopes) * (1 if mask is None else sentences))
        self._step = min(tokens, max(16, rows))
        # If all queries are one block, all layers share its bias.
        self._whole = self._of(0, tokens, tokens) if self._step == tokens else None

    def blocks(self, tokens: int) -> Any:
        """(first query, end, bias [sentences or 1, heads, queries, tokens]), for all queries in turn."""
        for first in range(0, tokens, self._step):
            end = min(first + self._step, tokens)
            yield first, end, self._of(first, end, tokens) if self._whole is None else self._whole

    def _of(self, first: int, end: int, tokens: int) -> torch.Tensor:
        places = torch.arange(tokens, device=self._slopes.device)
        distances = (places[first:end, None] - places).abs()
        bias = (-self._slopes[:, None, None] * distances)[None]
        if self._padding is not None:
            bias = bias.masked_fill(self._padding, float("-inf"))
        return bias.to(self._dtype)


class _Layer(nn.Module):  # type: ignore[misc]
    def __init__(self, width: int, heads: int, inner: int, eps: float) -> None:
        super().__init__()
        self._heads = heads
        own = {name: nn.Linear(width, width) for name in ("query", "key", "value")}
        output = {"dense": nn.Linear(width, width), "LayerNorm": nn.LayerNorm(width, eps=eps)}
        self.attention = nn.ModuleDict({"self": nn.ModuleDict(own), "output": nn.ModuleDict(output)})
        self.mlp = nn.ModuleDict(
            {
                "gated_layers": nn.Linear(width, 2 * inner, bias=False),
                "wo": nn.Linear(inner, width),
                "layernorm": nn.LayerNorm(width, eps=eps),
            }
        )

    def forward(self, hidden: torch.Tensor, bias: Bias) -> torch.Tensor:
        output = self.attention["output"]
        hidden = output["LayerNorm"](output["dense"](self._attend(hidden, bias)) + hidden)
        # The first half goes through GELU, the second multiplies it.
        activated, factor = self.mlp["gated_layers"](hidden).chunk(2, dim=-1)
        inner = self.mlp["wo"](nn.functional.gelu(activated) * factor)
        normed: torch.Tensor = self.mlp["layernorm"](inner + hidden)
        return normed

    def _attend(self, hidden: torch.Tensor, bias: Bias) -> torch.Tensor:
        sentences, tokens, width = hidden.shape
        own = self.attention["self"]
        query, key, value = (
            own[name](hidden).view(sentences, tokens, self._heads, -1).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        parts = [
            nn.functional.scaled_dot_product_attention(query[:, :, first:end], key, value, attn_mask=block)
            for first, end, block in bias.blocks(tokens)
        ]
        return torch.cat(parts, dim=2).transpose(1, 2).reshape(sentences, tokens, width)


def slopes_of(heads: int) -> list[float]:
    """ALiBi's slope of each head (arXiv 2108.12409): 2^(-8/n), 2^(-16/n), … for a power of two n.

    For another n, the slopes of the next lower power come first, then every second slope of the next higher power.
    """
    below = 2 ** math.floor(math.log2(heads))
    above = [2 ** (-8 * number / (2 * below)) for number in range(1, 2 * below + 1, 2)]
    return [2 ** (-8 * number / below) for number in range(1, below + 1)] + above[: heads - below]


def load_jina_bert(folder: Path, config: Mapping[str, Any], dtype: torch.dtype) -> JinaBert:
    """The model with its weights. Raises ModelError, which names the tensors that are missing or do not fit."""
    with torch.device("meta"):
        expected = {name: value.shape for name, value in JinaBert(config).state_dict().items()}
    state = {name.removeprefix("bert."): value for file in checkpoint_files(folder) for name, value in tensors_of(file)}
    # linear.weight is jina-colbert's, and `token_heads` reads it.
    without = (*UNUSED, "linear.weight")
    used = {name: value for name, value in state.items() if not any(f".{part}" in f".{name}" for part in without)}
    info = {
        "missing_keys": expected.keys() - used.keys(),
        "mismatched_keys": [(name,) for name, shape in expected.items() if name in used and used[name].shape != shape],
    }
    check_complete(info)
    if others := sorted(used.keys() - expected.keys()):
        raise ModelError(f"JinaBERT has no place for the weights {', '.join(others[:3])}")
    model = JinaBert(config)
    model.load_state_dict(used)
    loaded: JinaBert = model.to(dtype)
    return loaded
