"""Folders that hold no dense text embedder: sparse and multi-vector models, tables, images, adapters.

sentence-transformers loads many of them and takes the mean of their tokens. They were not trained for that, so the
engine has to refuse them.
"""

from pathlib import Path
from typing import Any

from tritonembed_perf.families.bert import WIDTH, bert, mean_modules
from tritonembed_perf.families.registry import case
from tritonembed_perf.families.sentence import normalize, write_sentence_files
from tritonembed_perf.families.writing import edit_json, write_json, write_tokenizer

OTHERS = "Not a dense text embedder"


@case(OTHERS, must_refuse=True)
def lora_folder(folder: Path) -> None:
    """An adapter alone, which names its base model."""
    _adapter(folder, "sentence-transformers/all-MiniLM-L6-v2")


@case(OTHERS, must_refuse=True)
def lora_with_config(folder: Path) -> None:
    """An adapter and the base model's config.json."""
    _adapter(folder, "sentence-transformers/all-MiniLM-L6-v2")
    model = bert()
    write_json(folder / "config.json", model.config)
    write_tokenizer(folder, model.tokenizer, model.tokenizer_config)


@case(OTHERS, must_refuse=True)
def lora_with_base(folder: Path) -> None:
    """An adapter and the base model's weights. transformers adds the adapter to them if peft is installed."""
    bert().write(folder)
    _adapter(folder, str(folder))


def _adapter(folder: Path, base: str) -> None:
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "base_model_name_or_path": base,
        "bias": "none",
        "lora_alpha": 16,
        "peft_type": "LORA",
        "r": 4,
        "target_modules": ["query", "value"],
        "task_type": "FEATURE_EXTRACTION",
    }
    write_json(folder / "adapter_config.json", config)
    state = {}
    for part in ("query", "value"):
        stem = f"base_model.model.encoder.layer.0.attention.self.{part}"
        state[f"{stem}.lora_A.weight"] = torch.randn(4, WIDTH)
        state[f"{stem}.lora_B.weight"] = torch.randn(WIDTH, 4)
    from safetensors.torch import save_file

    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})


@case(OTHERS, must_refuse=True)
def empty_folder(folder: Path) -> None:
    """A folder without files."""
    folder.mkdir(parents=True, exist_ok=True)


@case(OTHERS, must_refuse=True)
def no_weights(folder: Path) -> None:
    bert().write(folder, "none")
    write_sentence_files(folder, mean_modules(normalize()))


@case(OTHERS, must_refuse=True)
def no_tokenizer(folder: Path) -> None:
    bert().write(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink()


@case(OTHERS, must_refuse=True)
def broken_config(folder: Path) -> None:
    """config.json is cut in the middle, as after a broken download."""
    bert().write(folder)
    whole = (folder / "config.json").read_text()
    (folder / "config.json").write_text(whole[: len(whole) // 2])


@case(OTHERS, must_refuse=True)
def broken_weights(folder: Path) -> None:
    """Only half of the weights' file."""
    bert().write(folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    write_sentence_files(folder, mean_modules(normalize()))


@case(OTHERS, must_refuse=True)
def not_of_the_hub(folder: Path) -> None:
    """An unknown model type."""
    bert().write(folder)
    edit_json(folder / "config.json", model_type="made_up", architectures=["MadeUpModel"])
