"""An adapter merged with the weights of transformers' model, W + scale · B · A, independently of the serving code."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tritonembed_engine.errors import ModelError
from tritonembed_engine.model.adapters import AdapterFiles
from tritonembed_engine.model.checkpoint import checkpoint_files, tensors_of
from tritonembed_engine.model.folder import read_object
from tritonembed_engine.model.jina_v3 import as_transformers_has_it, as_transformers_names_it

_PREFIX = "base_model.model."


def merge_adapter(model: torch.nn.Module, adapter: AdapterFiles) -> None:
    """Merge the adapter with transformers' model. Raises ModelError if the model lacks one of the adapter's layers."""
    file = next(file for file in sorted(adapter.folder.glob("adapter_model.*"), reverse=True))
    tensors = {name.removeprefix(_PREFIX): tensor.float().numpy() for name, tensor in tensors_of(file)}
    parameters = dict(model.named_parameters())
    for name, a in tensors.items():
        path, lora, factor = name.rpartition(".lora_")
        if not lora or factor not in ("A.weight", "embedding_A"):
            continue
        parameter = _named(parameters, path)
        if parameter is None:
            raise ModelError(f"adapter {adapter.name}: transformers' model has no layer {path[:120]}")
        rank = a.shape[0]
        alpha = float(adapter.config.get("lora_alpha", 8))
        for pattern, value in (adapter.config.get("alpha_pattern") or {}).items():
            if re.search(rf"(^|\.)({pattern})$", path):
                alpha = float(value)
                break
        scale = alpha / (rank**0.5 if adapter.config.get("use_rslora") else rank)
        delta = np.einsum("or,ri->oi", tensors[f"{path}.lora_{factor.replace('A', 'B')}"], a) * np.float32(scale)
        if factor == "embedding_A":
            # A table has a row per input, a linear layer a row per output.
            delta = delta.T
        if tuple(parameter.shape) != delta.shape:
            raise ModelError(f"adapter {adapter.name}: {path[:120]} has another shape in the model")
        with torch.no_grad():
            # Weights of 16 bits would round the sum.
            parameter.data = parameter.data.float() + torch.from_numpy(delta.copy())


def jina_v3_oracle(folder: Path, task: str | None) -> Any:
    """jina-embeddings-v3 in transformers' own class, float32. task: merge this task's adapter; None: the base model."""
    from transformers import JinaEmbeddingsV3Config, JinaEmbeddingsV3Model

    config = read_object(folder / "config.json")
    stored = {name: tensor.float() for file in checkpoint_files(folder) for name, tensor in tensors_of(file)}
    scale = 1.0 if task is None else config["lora_alpha"] / config["lora_rank"]
    place = 0 if task is None else config["lora_adaptations"].index(task)
    state: dict[str, torch.Tensor] = {}
    for name, tensor in stored.items():
        if ".lora_" in name:
            continue
        stem, merged, _ = name.partition(".original")
        if merged and task is not None:
            a, b = (stored[f"{stem}.0.lora_{factor}"][place].numpy() for factor in "AB")
            delta = a @ b if "embeddings" in name else b @ a
            tensor = tensor + torch.from_numpy(np.float32(scale) * delta)
        state |= as_transformers_names_it(name, tensor)
    model = JinaEmbeddingsV3Model(JinaEmbeddingsV3Config(**as_transformers_has_it(config)), add_pooling_layer=False)
    model.load_state_dict(
        {name: tensor for name, tensor in state.items() if not name.startswith(("pooler.", "linear."))}
    )
    model.config.return_dict = True
    return model


def _named(parameters: dict[str, Any], path: str) -> Any:
    """The weight of a layer. The model may be the encoder of the trained model, or contain it."""
    name = f"{path}.weight"
    if name in parameters:
        return parameters[name]
    inside = [key for key in parameters if name.endswith(f".{key}") or key.endswith(f".{name}")]
    return parameters[inside[0]] if len(inside) == 1 else None
