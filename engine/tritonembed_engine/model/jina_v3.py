"""jina-embeddings-v3 and jina-colbert-v2: XLM-R with rotary positions; v3 has an adapter per task in its checkpoint.

Their class is code of the hub (jinaai/xlm-roberta-flash-implementation), which is not run: transformers has the base
model under other names. For v3, config.json lists the tasks (`lora_adaptations`). Every matrix has the base's values
(`parametrizations.weight.original`) and the two factors of all tasks, stacked (`parametrizations.weight.0.lora_A`).
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritonembed_engine.errors import ModelError
from tritonembed_engine.model.checkpoint import checkpoint_files, tensors_of
from tritonembed_engine.model.folder import read_object

if TYPE_CHECKING:
    import torch

JINA_V3 = "jina-v3"
"""`ModelFiles.model_type`; config.json says "xlm-roberta"."""

_CODE = "xlm-roberta-flash-implementation"

JINAS_MODULE = "custom_st.Transformer"
"""The class of its transformer in modules.json. Without a task it does the same as sentence-transformers' own."""

_SERVED: dict[str, tuple[Any, ...]] = {
    "model_type": ("xlm-roberta",),
    "position_embedding_type": ("rotary",),
    "emb_pooler": (None,),
    "use_reg_tokens": (None, False),
    "truncate_dim": (None,),
}
"""Keys that change what the code computes, and their served values."""

_KEPT = (
    *("hidden_act", "hidden_size", "intermediate_size", "layer_norm_eps", "max_position_embeddings"),
    *("num_attention_heads", "num_hidden_layers", "pad_token_id", "type_vocab_size", "vocab_size"),
)
_NAMES = {
    r"^roberta\.": "",
    r"^encoder\.layers": "layers",
    r"^emb_ln": "embeddings.LayerNorm",
    r"mixer\.Wqkv": "self_attn.qkv",
    r"mixer\.out_proj": "self_attn.o_proj",
    r"norm1": "post_attention_layernorm",
    r"norm2": "post_mlp_layernorm",
    r"\.parametrizations\.weight\.original$": ".weight",
}
"""Patterns of the hub's names, and transformers'. Queries, keys and values are one matrix on the hub."""

_QKV = ("q_proj", "k_proj", "v_proj")
_FACTOR = re.compile(r"(?P<module>.+)\.parametrizations\.weight\.0\.lora_(?P<factor>[AB])")


def is_jina_v3(config: Mapping[str, Any]) -> bool:
    """Whether config.json is one of a model whose tasks are adapters, or names their code on the hub."""
    code = config.get("auto_map")
    names = code.values() if isinstance(code, Mapping) else ()
    return bool(config.get("lora_adaptations")) or any(_CODE in str(name) for name in names)


def check_jina_v3(name: str, config: Mapping[str, Any]) -> None:
    """Raise ModelError, which names the key, if the model is not as transformers computes it."""
    for key, served in _SERVED.items():
        if config.get(key) not in served:
            given = str(config.get(key))[:40]
            what = "its tasks are LoRA adapters (lora_adaptations)" if tasks_of(config) else f"its code is {_CODE}"
            raise ModelError(f"{name}: {what}, but it is not served with the {key} {given!r}")
    numbers = ("rotary_emb_base", "layer_norm_eps", *(("lora_alpha", "lora_rank") if tasks_of(config) else ()))
    for key in numbers:
        if not isinstance(config.get(key), int | float) or config[key] <= 0:
            raise ModelError(f"{name}: {key} in config.json must be a number above 0")
    if not all(isinstance(task, str) and task for task in tasks_of(config)):
        raise ModelError(f"{name}: lora_adaptations in config.json must be names")


def tasks_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The tasks of a model; none if it has no adapters of its own."""
    return tuple(config.get("lora_adaptations") or ())


def as_transformers_has_it(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of the base model in transformers' words."""
    kept = {key: config[key] for key in _KEPT if key in config}
    return {**kept, "rope_parameters": {"rope_type": "default", "rope_theta": float(config["rotary_emb_base"])}}


def base_state(folder: Path) -> "dict[str, torch.Tensor]":
    """The base model's tensors under transformers' names."""
    state: dict[str, torch.Tensor] = {}
    for name, tensor in _tensors(folder):
        if not _FACTOR.fullmatch(name):
            state |= as_transformers_names_it(name, tensor)
    return state


def as_transformers_names_it(name: str, tensor: "torch.Tensor") -> "dict[str, torch.Tensor]":
    """A tensor of the checkpoint under transformers' names."""
    return in_parts(_renamed(name), tensor)


def task_factors(folder: Path, task: str) -> "Iterator[tuple[str, torch.Tensor, torch.Tensor]]":
    """The two factors of every layer for a task: name in transformers, lora_A, lora_B, as they are stored.

    Raises ModelError if a factor is missing or lacks the task.
    """
    config = read_object(folder / "config.json")
    place = tasks_of(config).index(task)
    factors: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in _tensors(folder):
        if found := _FACTOR.fullmatch(name):
            if tensor.dim() != 3 or len(tensor) != len(tasks_of(config)):
                raise ModelError(f"{name[:120]} does not have a matrix per task")
            factors.setdefault(found["module"], {})[found["factor"]] = tensor[place]
    if not factors:
        raise ModelError("its weights have no adapters")
    for module, both in sorted(factors.items()):
        if len(both) < 2:
            raise ModelError(f"its weights are not complete: {module[:120]} has one of two matrices")
        yield _renamed(module), both["A"], both["B"]


def in_parts(name: str, tensor: "torch.Tensor") -> "dict[str, torch.Tensor]":
    """A tensor of queries, keys and values as transformers has them: three tensors; others stay. By name."""
    if ".qkv." not in f"{name}.":
        return {name: tensor}
    return {name.replace(".qkv", f".{part}"): piece for part, piece in zip(_QKV, tensor.chunk(3), strict=True)}


def _renamed(name: str) -> str:
    for pattern, replacement in _NAMES.items():
        name = re.sub(pattern, replacement, name)
    return name


def _tensors(folder: Path) -> "Iterator[tuple[str, torch.Tensor]]":
    for file in checkpoint_files(folder):
        yield from tensors_of(file)
