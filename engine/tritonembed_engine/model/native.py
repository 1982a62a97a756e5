"""GTE and NomicBERT as transformers 5 saves them: vLLM reads the names of the hub's first code only.

The names are those of Alibaba-NLP/new-impl and nomic-ai/nomic-bert-2048; what comes out is held against transformers.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritonembed_engine.model.checkpoint import checkpoint_files, tensors_of

if TYPE_CHECKING:
    import torch

_QKV = ("q_proj", "k_proj", "v_proj")
_JOINED: dict[str, dict[tuple[str, ...], str]] = {
    "gte": {_QKV: "qkv", ("up_proj", "gate_proj"): "up_gate"},
    "nomic_bert": {_QKV: "qkv"},
}
"""By model type: the matrices that stand row by row in one."""

_RENAMED = {
    "gte": {
        r"^layers": "encoder.layer",
        r"self_attn\.o_proj": "attention.o_proj",
        r"self_attn\.qkv": "attention.qkv_proj",
        r"mlp\.up_gate(?=\.)": "mlp.up_gate_proj",
        r"post_attention_layernorm": "attn_ln",
        r"post_mlp_layernorm": "mlp_ln",
    },
    "nomic_bert": {
        r"^layers": "encoder.layers",
        r"embeddings\.LayerNorm": "emb_ln",
        r"self_attn\.o_proj": "attn.out_proj",
        r"self_attn\.qkv": "attn.Wqkv",
        r"up_proj": "fc11",
        r"gate_proj": "fc12",
        r"down_proj": "fc2",
        r"post_attention_layernorm": "norm1",
        r"post_mlp_layernorm": "norm2",
    },
}
"""By model type: patterns of transformers' names to the hub's, each applied in turn. The hub's own names stay: the
`save_pretrained` of transformers 5 writes those."""


def is_native(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is transformers' own of one of the two families: the hub's has code beside it."""
    return config.get("model_type") in _RENAMED and "auto_map" not in config and "n_embd" not in config


def hub_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json with the hub's words beside transformers'."""
    told = dict(config)
    if told["model_type"] == "nomic_bert":
        rope = told.get("rope_parameters") or {}
        told |= {
            "activation_function": "swiglu",
            "mlp_fc1_bias": False,
            "mlp_fc2_bias": False,
            "qkv_proj_bias": False,
            "n_embd": told.get("hidden_size", 768),
            "n_head": told.get("num_attention_heads", 12),
            "n_inner": told.get("intermediate_size", 3072),
            "n_layer": told.get("num_hidden_layers", 12),
            "n_positions": told.get("max_position_embeddings", 2048),
            "max_trained_positions": told.get("max_position_embeddings", 2048),
            "layer_norm_epsilon": told.get("layer_norm_eps", 1e-12),
            "rotary_emb_base": rope.get("rope_theta", 1000.0),
            "rotary_emb_fraction": 1.0,
            "rotary_emb_interleaved": False,
            "rotary_emb_scale_base": None,
            "rotary_scaling_factor": None,
            "type_vocab_size": told.get("type_vocab_size", 2),
            "causal": False,
            "use_rms_norm": False,
        }
    return told


def write_with_hub_names(source: Path, target: Path, model_type: str) -> None:
    """The checkpoint under the hub's names, as model.safetensors in `target`."""
    from safetensors.torch import save_file

    state = {name: tensor for file in checkpoint_files(source) for name, tensor in tensors_of(file)}
    for parts, whole in _JOINED[model_type].items():
        state = _joined(state, parts, whole)
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in _RENAMED[model_type].items():
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor.contiguous()
    save_file(renamed, target / "model.safetensors", metadata={"format": "pt"})
    weight_map = dict.fromkeys(renamed, "model.safetensors")
    index = {"metadata": {}, "weight_map": weight_map}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))


def _joined(state: "dict[str, torch.Tensor]", parts: tuple[str, ...], whole: str) -> "dict[str, torch.Tensor]":
    import torch

    result = dict(state)
    for name in state:
        if f".{parts[0]}." in name:
            pieces = [result.pop(name.replace(parts[0], part)) for part in parts]
            result[name.replace(parts[0], whole)] = torch.cat(pieces)
    return result
