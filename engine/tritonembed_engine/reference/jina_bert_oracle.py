"""JinaBERT v2 for the reference, made of transformers' own classes. It shares nothing with the code that serves.

BERT's layers and plain attention, with the bias of the distances as its mask; ModernBERT's gate; BLOOM's slopes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tritonembed_engine.errors import ModelError
from tritonembed_engine.model.checkpoint import checkpoint_files, tensors_of

_RENAMED = (
    ("bert.", ""),
    (".mlp.gated_layers.", ".intermediate.Wi."),
    (".mlp.wo.", ".output.dense."),
    (".mlp.layernorm.", ".output.LayerNorm."),
)


class JinaBertOracle(torch.nn.Module):  # type: ignore[misc]
    """The encoder in float32, for one sentence at a time."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Raises ModelError if a tensor is missing or has another shape."""
        super().__init__()
        from transformers import BertConfig, BertModel, ModernBertConfig
        from transformers.models.bloom.modeling_bloom import build_alibi_tensor
        from transformers.models.modernbert.modeling_modernbert import ModernBertMLP

        known = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        sizes = {key: config[key] for key in (*known, "max_position_embeddings")}
        others = {key: config[key] for key in ("type_vocab_size", "layer_norm_eps") if key in config}
        made = BertConfig(**sizes, **others, hidden_act="gelu", attn_implementation="eager")
        self.bert = BertModel(made, add_pooling_layer=False)
        gate = ModernBertConfig(
            hidden_size=made.hidden_size,
            intermediate_size=made.intermediate_size,
            hidden_activation="gelu",
            mlp_bias=False,
            mlp_dropout=0.0,
        )
        for layer in self.bert.encoder.layer:
            layer.intermediate = ModernBertMLP(gate)
            layer.intermediate.Wo = torch.nn.Identity()
        self.bert.load_state_dict(self._state(folder))
        self.bert.eval()
        # The bias of the second of two tokens, which is one place away, is the slope.
        self._slopes = build_alibi_tensor(torch.ones(1, 2), made.num_attention_heads, torch.float32)[:, 0, 1]

    def _state(self, folder: Path) -> dict[str, torch.Tensor]:
        wanted = self.bert.state_dict()
        state = {name: value for name, value in wanted.items() if name.endswith(("position_ids", "token_type_ids"))}
        # The model adds no positions.
        state["embeddings.position_embeddings.weight"] = torch.zeros_like(
            wanted["embeddings.position_embeddings.weight"]
        )
        for file in checkpoint_files(folder):
            for name, value in tensors_of(file):
                for old, new in _RENAMED:
                    name = name.replace(old, new)
                if name in wanted and name not in state:
                    state[name] = value.float()
        for name, value in wanted.items():
            if name not in state or state[name].shape != value.shape:
                for old, new in _RENAMED[1:]:
                    name = name.replace(new, old)
                raise ModelError(f"the model's weights lack {name}, or it has another shape")
        return state

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        """transformers' output. input_ids: [1, tokens]. attention_mask: ones, because nothing is padded."""
        assert bool(attention_mask.all())
        places = torch.arange(input_ids.shape[1])
        distances = (places - places[:, None]).abs().to(self.bert.dtype)
        bias = -self._slopes.to(self.bert.dtype)[None, :, None, None] * distances
        return self.bert(input_ids=input_ids, attention_mask=bias)
