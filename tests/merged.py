"""An adapter's vectors by another way than the engine's: numpy merges the weights, transformers computes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import AutoModel


def merged_model(base: Path, adapter: Path) -> Any:
    """transformers' model with W + scale · B · A in place of W. peft's patterns are ends of names here."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    state = load_file(adapter / "adapter_model.safetensors")
    model = AutoModel.from_pretrained(base, dtype=torch.float32).eval()
    weights = model.state_dict()
    for name, a in state.items():
        layer, factor, _ = name.removeprefix("base_model.model.").partition(".lora_A")
        if not factor:
            continue
        alpha = config["lora_alpha"]
        for end, value in (config.get("alpha_pattern") or {}).items():
            if layer.endswith(end):
                alpha = value
        rank = len(a)
        scale = alpha / np.sqrt(rank) if config["use_rslora"] else alpha / rank
        # A checkpoint may have the names of a model with a head.
        layer = layer if f"{layer}.weight" in weights else layer.removeprefix("model.")
        weights[f"{layer}.weight"] += torch.from_numpy(scale * state[name.replace("lora_A", "lora_B")] @ a).float()
    model.load_state_dict(weights)
    return model


def hidden_of(model: Any, ids: "np.typing.NDArray[np.int32]") -> "np.typing.NDArray[np.float32]":
    """States of one sentence's tokens: float32 [tokens, width]."""
    with torch.inference_mode():
        given = torch.from_numpy(ids.astype(np.int64))[None]
        states: np.typing.NDArray[np.float32] = (
            model(input_ids=given, attention_mask=torch.ones_like(given)).last_hidden_state[0].numpy()
        )
    return states


def cosines(ours: Any, theirs: Any) -> Any:
    """Of each row with the same row: float64 [rows]."""
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return (ours.astype(np.float64) * theirs).sum(axis=1) / norms
