"""LoRA adapters with random weights, as peft's `save_pretrained` writes them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

EXTRA = 0.5
"""What an adapter adds to a layer's outputs, as a part of what the layer gives by itself: enough to turn vectors."""


def write_adapter(
    folder: Path,
    base: Path,
    targets: Sequence[str] | str,
    *,
    rank: int = 4,
    layers: Sequence[str] = (),
    seed: int = 0,
    **config: Any,
) -> Path:
    """An adapter of a model. base: the model's folder, with model.safetensors.

    targets: the ends of the layers' names; if it is one text, it is written as it is, and `layers` has the ends.
    config: more keys of adapter_config.json.
    """
    from safetensors.numpy import load_file, save_file

    given: dict[str, Any] = {
        "base_model_name_or_path": str(base),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.1,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": targets if isinstance(targets, str) else list(targets),
        "task_type": "FEATURE_EXTRACTION",
        "use_dora": False,
        "use_rslora": False,
        **config,
    }
    rng = np.random.default_rng(seed)
    state: dict[str, Any] = {}
    ends = layers or targets
    for name, weight in load_file(base / "model.safetensors").items():
        layer = name.removesuffix(".weight")
        if weight.ndim != 2 or not any(f".{layer}".endswith(f".{end}") for end in ends):
            continue
        own = _of_layer(given.get("rank_pattern") or {}, layer, rank)
        size = EXTRA * float(np.std(weight)) / own
        stem = f"base_model.model.{layer}"
        state[f"{stem}.lora_A.weight"] = rng.standard_normal((own, weight.shape[1]), np.float32)
        state[f"{stem}.lora_B.weight"] = (size * rng.standard_normal((weight.shape[0], own))).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(given))
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def _of_layer(pattern: Mapping[str, int], layer: str, default: int) -> int:
    return next((value for end, value in pattern.items() if f".{layer}".endswith(f".{end}")), default)
