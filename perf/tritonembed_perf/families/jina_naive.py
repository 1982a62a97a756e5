"""JinaBERT v2 once more, for one text at a time: loops over heads in float64, written from the papers' formulas.

The cases of `jina_v2` copy this file beside their weights, and sentence-transformers runs it as the model's own code.
"""

from typing import Any

import torch
from transformers import BertConfig, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class NaiveConfig(BertConfig):  # type: ignore[misc]
    """config.json of BERT."""

    model_type = "naive-jina-bert"


class NaiveJinaBert(PreTrainedModel):  # type: ignore[misc]
    """Holds the tensors under their names in the checkpoint, with "." replaced."""

    config_class = NaiveConfig

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        self.linear = torch.nn.Linear(1, 1)
        self.post_init()

    @classmethod
    def from_pretrained(cls, folder: Any, *_: Any, **given: Any) -> Any:
        """Reads model.safetensors itself: there are no modules to fill."""
        from pathlib import Path

        from safetensors.torch import load_file

        model = cls(given["config"])
        model.tensors = {name: value.double() for name, value in load_file(Path(folder) / "model.safetensors").items()}
        return model.eval()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> BaseModelOutput:
        """One text."""
        assert len(input_ids) == 1
        hidden = naive_hidden(self.tensors, self.config, input_ids[0], attention_mask[0] != 0)
        return BaseModelOutput(last_hidden_state=hidden.float()[None])


def naive_hidden(
    tensors: dict[str, torch.Tensor], config: Any, ids: torch.Tensor, seen: torch.Tensor | None = None
) -> torch.Tensor:
    """The last hidden state of one text, float64 [tokens, width]. tensors: float64, by name. ids: [tokens]. seen: bool
    [tokens], the tokens that others attend to; None: all."""
    words, kinds = (tensors[f"embeddings.{name}_embeddings.weight"] for name in ("word", "token_type"))
    hidden = _norm(tensors, "embeddings.LayerNorm", words[ids] + kinds[0], config)
    for number in range(config.num_hidden_layers):
        hidden = _layer(tensors, f"encoder.layer.{number}", hidden, config, seen)
    return hidden


def _layer(
    tensors: dict[str, torch.Tensor], layer: str, hidden: torch.Tensor, config: Any, seen: torch.Tensor | None
) -> torch.Tensor:
    heads, tokens = config.num_attention_heads, len(hidden)
    size = config.hidden_size // heads
    query, key, value = (
        _linear(tensors, f"{layer}.attention.self.{name}", hidden) for name in ("query", "key", "value")
    )
    mixed = torch.zeros_like(hidden)
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        for token in range(tokens):
            scores = key[:, own] @ query[token, own] / size**0.5
            distance = (torch.arange(tokens) - token).abs()
            scores -= naive_slope(head, heads) * distance
            if seen is not None:
                scores[~seen] = float("-inf")
            mixed[token, own] = torch.softmax(scores, dim=0) @ value[:, own]
    attended = _linear(tensors, f"{layer}.attention.output.dense", mixed) + hidden
    hidden = _norm(tensors, f"{layer}.attention.output.LayerNorm", attended, config)
    both = hidden @ tensors[f"{layer}.mlp.gated_layers.weight"].T
    inner = config.intermediate_size
    gated = 0.5 * both[:, :inner] * (1 + torch.erf(both[:, :inner] / 2**0.5)) * both[:, inner:]
    return _norm(tensors, f"{layer}.mlp.layernorm", _linear(tensors, f"{layer}.mlp.wo", gated) + hidden, config)


def naive_slope(head: int, heads: int) -> float:
    """A head's slope: 0.5, 0.25, … for eight heads; the ones that eight lack for twelve are 2^-0.5, 2^-1.5, …"""
    power = 1
    while power * 2 <= heads:
        power *= 2
    exponent = 8 * (head + 1) / power if head < power else 8 * (2 * (head - power) + 1) / (2 * power)
    return float(2**-exponent)


def _linear(tensors: dict[str, torch.Tensor], name: str, values: torch.Tensor) -> torch.Tensor:
    return values @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]


def _norm(tensors: dict[str, torch.Tensor], name: str, values: torch.Tensor, config: Any) -> torch.Tensor:
    centred = values - values.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + config.layer_norm_eps).sqrt()
    return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]
