"""A transformer's weights on disk: their tensors, and a copy of the encoder's alone."""

import json
from collections.abc import Container, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritonembed_engine.errors import ModelError

if TYPE_CHECKING:
    import torch

SHARD_BYTES = 2 << 30

UNUSED = ("pooler.", "lm_head.", "cls.", "embeddings.position_ids")
"""Weights that no vector depends on; a checkpoint may lack them."""


def checkpoint_files(folder: Path) -> list[Path]:
    """The files of the weights: all shards, of safetensors if there are any. Raises ModelError if there are none."""
    for single, index in (
        ("model.safetensors", "model.safetensors.index.json"),
        ("pytorch_model.bin", "pytorch_model.bin.index.json"),
    ):
        if (folder / index).is_file():
            names = set(json.loads((folder / index).read_text("utf-8"))["weight_map"].values())
            missing = sorted(name for name in names if not (folder / name).is_file())
            if missing:
                raise ModelError(f"the model's weights are not complete: {missing[0]} is missing")
            return [folder / name for name in sorted(names)]
        if (folder / single).is_file():
            return [folder / single]
    raise ModelError("the model has no weights (model.safetensors or pytorch_model.bin)")


def check_complete(info: Any) -> None:
    """Raise ModelError, with their names, if the checkpoint lacks weights that a vector depends on.

    info: transformers' `output_loading_info`.
    """
    # In a model with a head the encoder's names have a prefix.
    missing = sorted(
        name for name in info.get("missing_keys", ()) if not any(f".{part}" in f".{name}" for part in UNUSED)
    )
    mismatched = sorted(str(entry[0]) for entry in info.get("mismatched_keys", ()))
    for what, names in (("lack", missing), ("have another shape of", mismatched)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ModelError(f"the model's weights {what} {', '.join(names[:3])}{more}")


def tensors_of(file: Path) -> Iterator[tuple[str, "torch.Tensor"]]:
    """Every tensor of one file with its name, on the CPU. Of safetensors only one tensor at a time is in memory."""
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                yield name, opened.get_tensor(name)
    else:
        import torch

        yield from torch.load(file, map_location="cpu", weights_only=True, mmap=True).items()


def selected_tensors(file: Path, names: Container[str]) -> "Iterator[tuple[str, torch.Tensor]]":
    """The selected tensors of one file, by name, on the CPU. The others are not read."""
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                if name in names:
                    yield name, opened.get_tensor(name)
    else:
        yield from (pair for pair in tensors_of(file) if pair[0] in names)


def names_of(file: Path) -> list[str]:
    """The names of one file's tensors. The tensors of safetensors are not read."""
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    return [name for name, _ in tensors_of(file)]


def has_prefix(folder: Path, prefix: str) -> bool:
    """Whether any weights have this prefix, so that the checkpoint has a head too."""
    return any(name.startswith(prefix) for file in checkpoint_files(folder) for name in names_of(file))


def write_without_prefix(source: Path, target: Path, prefix: str) -> None:
    """The tensors under a prefix, without it, as model.safetensors shards with their index in `target`."""
    from safetensors.torch import save_file

    weight_map: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    size = number = 0

    def flush() -> None:
        nonlocal size, number
        if shard:
            number += 1
            name = f"model-{number:05}.safetensors"
            save_file(shard, target / name, metadata={"format": "pt"})
            weight_map.update(dict.fromkeys(shard, name))
            shard.clear()
            size = 0

    for file in checkpoint_files(source):
        for name, tensor in tensors_of(file):
            if name.startswith(prefix):
                shard[name.removeprefix(prefix)] = tensor.contiguous()
                size += tensor.nbytes
                if size >= SHARD_BYTES:
                    flush()
    flush()
    (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
