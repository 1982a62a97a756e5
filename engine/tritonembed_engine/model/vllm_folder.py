"""The folder that vLLM loads: the transformer alone, with a config.json in the words of the class that serves it.

vLLM reads sentence-transformers' files too, but ignores what it does not know. So it gets none of them: the engine
pools and applies the steps after the pooling. Files are linked. Weights are copied only if a head's weights have to be
left out, or if vLLM has other names for them.

The weights of GTE and NomicBERT as transformers 5 saves them are renamed: vLLM only reads the names of the hub's first
code, Alibaba-NLP/new-impl and nomic-ai/nomic-bert-2048. The result is compared with transformers at load.
"""

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritonembed_engine.model.architecture import config_for_vllm, head_of
from tritonembed_engine.model.checkpoint import checkpoint_files, has_prefix, tensors_of, write_without_prefix
from tritonembed_engine.model.folder import read_object

if TYPE_CHECKING:
    import torch

SCRATCH_VARIABLE = "TRITONEMBED_SCRATCH"
"""The manager's temporary folder, which is cleared even if this process is killed."""
_LEFT_OUT = ("modules.json", "config_sentence_transformers.json", "config.json")
_WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json", "*.bin.index.json", "*.pt", "*.pth", "*.gguf")

_QKV = ("q_proj", "k_proj", "v_proj")
_JOINED: dict[str, dict[tuple[str, ...], str]] = {
    "gte": {_QKV: "qkv", ("up_proj", "gate_proj"): "up_gate"},
    "nomic_bert": {_QKV: "qkv"},
}
"""For each model type: the matrices that are stacked by rows in one."""

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
"""Per model type: patterns of transformers' names to the hub's, each applied in turn. The hub's own names stay: the
`save_pretrained` of transformers 5 writes those."""


@contextlib.contextmanager
def vllm_folder(transformer: Path) -> Iterator[Path]:
    """The folder, under the model's own name. It exists until the block ends: then vLLM has read it.

    transformer: the folder of the transformer's files and weights. Raises ModelError if weights are missing.
    """
    config = read_object(transformer / "config.json")
    prefix, encoder = head_of(config)
    with tempfile.TemporaryDirectory(prefix="tritonembed-model-", dir=os.environ.get(SCRATCH_VARIABLE)) as parent:
        folder = Path(parent) / (transformer.resolve().name or "model")
        folder.mkdir()
        headed = bool(prefix) and not config.get("quantization_config") and has_prefix(transformer, prefix)
        native = is_native(config)
        changed = config_for_vllm(hub_config(config) if native else config)
        if headed:
            changed["architectures"] = [encoder]
        for file in transformer.iterdir():
            is_sentence_file = file.name in _LEFT_OUT or file.name.startswith("sentence_")
            is_weights = any(file.match(pattern) for pattern in _WEIGHTS)
            if file.is_file() and not is_sentence_file and not ((headed or native) and is_weights):
                (folder / file.name).symlink_to(file.resolve())
        (folder / "config.json").write_text(json.dumps(changed))
        if headed:
            write_without_prefix(transformer, folder, prefix)
        elif native:
            write_with_hub_names(transformer, folder, str(config["model_type"]))
        yield folder


def is_native(config: Mapping[str, Any]) -> bool:
    """Whether a config.json of one of the two families is transformers' own; the hub's comes with code."""
    return config.get("model_type") in _RENAMED and "auto_map" not in config and "n_embd" not in config


def hub_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json with the hub's keys added to transformers'."""
    changed = dict(config)
    if changed["model_type"] == "nomic_bert":
        rope = changed.get("rope_parameters") or {}
        changed |= {
            "activation_function": "swiglu",
            "mlp_fc1_bias": False,
            "mlp_fc2_bias": False,
            "qkv_proj_bias": False,
            "n_embd": changed.get("hidden_size", 768),
            "n_head": changed.get("num_attention_heads", 12),
            "n_inner": changed.get("intermediate_size", 3072),
            "n_layer": changed.get("num_hidden_layers", 12),
            "n_positions": changed.get("max_position_embeddings", 2048),
            "max_trained_positions": changed.get("max_position_embeddings", 2048),
            "layer_norm_epsilon": changed.get("layer_norm_eps", 1e-12),
            "rotary_emb_base": rope.get("rope_theta", 1000.0),
            "rotary_emb_fraction": 1.0,
            "rotary_emb_interleaved": False,
            "rotary_emb_scale_base": None,
            "rotary_scaling_factor": None,
            "type_vocab_size": changed.get("type_vocab_size", 2),
            "causal": False,
            "use_rms_norm": False,
        }
    return changed


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
