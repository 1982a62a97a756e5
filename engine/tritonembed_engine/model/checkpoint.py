"""A transformer's weights on disk: which tensors there are, and the encoder's alone where a head came with them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tritonembed_engine.errors import ModelError

if TYPE_CHECKING:
    import torch

SHARD_BYTES = 2 << 30


def checkpoint_files(folder: Path) -> list[Path]:
    """The files that hold the weights: all shards, of safetensors if there are any. Raises ModelError for none."""
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


def tensors_of(file: Path) -> Iterator[tuple[str, "torch.Tensor"]]:
    """Every tensor of one file with its name, on the CPU; of safetensors one is in memory at a time."""
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                yield name, opened.get_tensor(name)
    else:
        import torch

        yield from torch.load(file, map_location="cpu", weights_only=True, mmap=True).items()


def names_of(file: Path) -> list[str]:
    """The names of one file's tensors; of safetensors without reading them."""
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    return [name for name, _ in tensors_of(file)]


def has_prefix(folder: Path, prefix: str) -> bool:
    """Whether the encoder's weights are under a prefix, beside those of a head."""
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
