"""Writes model folders: configuration, random weights and tokenizer, in the layout of the hub's models."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

    State = dict[str, torch.Tensor]

WEIGHT_SCALE = 1.2
"""Standard deviation of the weights, times the square root of their inputs. Trained weights are smaller; with these, a
small fault shows."""

VECTOR_SPREAD = 0.3
"""Standard deviation of biases, and of LayerNorm weights around 1, so that a swapped or missing tensor shows."""

QKV = ("q_proj", "k_proj", "v_proj")
"""Projections of attention, which many models keep in one matrix."""


@dataclass
class ModelParts:
    """A transformer and its tokenizer before they are written. Cases change the parts that they test."""

    config: dict[str, Any]
    """The content of config.json."""

    state: "State"
    tokenizer: "Tokenizer"
    tokenizer_config: dict[str, Any] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """Dimensions of a token's vector, under any name that config.json may have for them."""
        return next(int(self.config[key]) for key in ("hidden_size", "dim", "d_model", "n_embd") if key in self.config)

    def write(self, folder: Path, form: str = "safetensors") -> None:
        """Write config.json, the weights and the tokenizer. form: as in `write_weights`."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", self.config)
        write_weights(folder, self.state, form)
        write_tokenizer(folder, self.tokenizer, self.tokenizer_config)

    def prefix(self, prefix: str) -> None:
        """Put the weights under a prefix, as a model with a head saves its body."""
        self.state = {f"{prefix}{name}": tensor for name, tensor in self.state.items()}


def random_state(model_class: str, config: Mapping[str, Any], seed: int = 0) -> "State":
    """Random float32 weights for a class of transformers. config: config.json, including model_type."""
    import torch
    import transformers

    made = transformers.AutoConfig.for_model(**config)
    with torch.device("meta"):
        model = getattr(transformers, model_class)(made)
    return {name: _random(name, tensor, seed + i) for i, (name, tensor) in enumerate(_own_tensors(model))}


def _own_tensors(model: Any) -> Iterable[tuple[str, Any]]:
    """The tensors that the model saves. Tied weights come once, under one name."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    return [(name, tensor) for name, tensor in model.state_dict().items() if name not in tied]


def _random(name: str, like: Any, seed: int) -> "torch.Tensor":
    import torch

    generator = torch.Generator().manual_seed(seed)
    if not like.is_floating_point():
        # A buffer `position_ids`: no other tensors are integers.
        return torch.arange(like.numel()).reshape(like.shape)
    noise = torch.randn(like.shape, generator=generator)
    if like.dim() < 2:
        is_scale = name.endswith("weight")
        return is_scale + VECTOR_SPREAD * noise
    is_table = "embeddings" in name or "embed_tokens" in name or "wte" in name
    return noise * (1.0 if is_table else WEIGHT_SCALE / like.shape[-1] ** 0.5)


def renamed(state: "State", names: Mapping[str, str]) -> "State":
    """Rename tensors. names: regular expressions and their replacements."""
    result = {}
    for name, tensor in state.items():
        for old, new in names.items():
            name = re.sub(old, new, name)
        result[name] = tensor
    return result


def joined(state: "State", parts: tuple[str, ...], whole: str) -> "State":
    """Join tensors that differ by one part of their names, such as q_proj, k_proj and v_proj, row by row."""
    import torch

    result = dict(state)
    for name in state:
        if parts[0] in name:
            pieces = [result.pop(name.replace(parts[0], part)) for part in parts]
            result[name.replace(parts[0], whole)] = torch.cat(pieces)
    return result


def write_weights(folder: Path, state: "State", form: str = "safetensors") -> None:
    """Write weights. form: "safetensors", "bin" (pytorch_model.bin), "sharded" or "none"."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    if form == "safetensors":
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    elif form == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    elif form == "sharded":
        names = sorted(state)
        halves = [names[::2], names[1::2]]
        places = {}
        for number, half in enumerate(halves, 1):
            file = f"model-{number:05}-of-00002.safetensors"
            save_file({name: state[name] for name in half}, folder / file, metadata={"format": "pt"})
            places.update(dict.fromkeys(half, file))
        size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": places})
    elif form != "none":
        raise ValueError(f"there is no form {form}")


def write_tokenizer(folder: Path, tokenizer: "Tokenizer", config: Mapping[str, Any]) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json."""
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", config)
    tokens = {key: value for key, value in config.items() if key.endswith("_token") and isinstance(value, str)}
    write_json(folder / "special_tokens_map.json", tokens)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, and create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON object in a file; a value of `...` removes its key."""
    value = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    value.update(changes)
    write_json(path, {key: item for key, item in value.items() if item is not ...})
