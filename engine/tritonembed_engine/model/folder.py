"""A model's folder on this machine, or fetched from the Hugging Face hub."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tritonembed_engine.errors import ModelError

CONFIGURATION_FILES = [
    "config.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_*_config.json",
    "*_*/*.json",
    # Dense modules' weights are small.
    "[1-9]_*/model.safetensors",
    "[1-9]_*/pytorch_model.bin",
    "*_*/vocab.*",
    "*_*/merges.txt",
    "*_*/*.model",
    "adapter_config.json",
    # The weights of queries' tokens (SparseStaticEmbedding).
    "router_config.json",
    "query_*/model.safetensors",
    # bge-m3's heads.
    "sparse_linear.pt",
    "colbert_linear.pt",
    # Stanford's ColBERT.
    "artifact.metadata",
    "chat_template*",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
]
"""The files to fetch from the hub, as patterns of `huggingface_hub`."""


def find_model_folder(model: str, revision: str | None = None) -> tuple[Path, bool]:
    """The folder that holds a model's configuration, and whether it is a folder the user named (not the hub's cache).

    model: a folder, or a name on the hub. Raises ModelError, in one line and without the path.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder, True
    if folder.exists():
        raise ModelError(f"{short_name(model)} is a file, not a model's folder")
    if _can_only_be_a_folder(model):
        raise ModelError(f"there is no model folder {short_name(model)}")
    return _fetch(model, revision), False


def weights_folder(model: str, revision: str | None, transformer: Path, is_local: bool) -> Path:
    """The transformer's folder with its weights, which are fetched if the model is on the hub.

    transformer: the folder of its configuration. Raises ModelError.
    """
    if is_local:
        return transformer
    complete = _fetch(model, revision, ["*.safetensors"])
    if not any(complete.rglob("*.safetensors")):
        complete = _fetch(model, revision, ["*.bin"])
    return transformer if complete in (transformer, *transformer.parents) else complete


def short_name(model: str) -> str:
    """A model's name for messages: a folder's last part, or the whole name on the hub."""
    if _can_only_be_a_folder(model) or Path(model).exists():
        return Path(model).name or "/"
    return model


def read_json(path: Path) -> Any:
    """The contents of one JSON file; None if it does not exist. Raises ModelError if it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise ModelError(f"the model's {path.name} can't be read ({type(error).__name__})") from None


def read_object(path: Path) -> dict[str, Any]:
    """Like `read_json`, for a file with an object; empty if the file does not exist."""
    value = read_json(path)
    if value is not None and not isinstance(value, dict):
        raise ModelError(f"the model's {path.name} is not a JSON object")
    return value or {}


def _can_only_be_a_folder(model: str) -> bool:
    """Names on the hub are `name` or `owner/name`."""
    return model.startswith(("/", ".", "~")) or model.count("/") > 1 or model.endswith("/")


def _fetch(model: str, revision: str | None, weights: Sequence[str] = ()) -> Path:
    # Imported here: a folder needs no hub client, and the import takes a tenth of a second.
    from huggingface_hub import errors, snapshot_download

    name = short_name(model)
    try:
        return Path(
            snapshot_download(model, revision=revision, allow_patterns=[*CONFIGURATION_FILES, "*.py", *weights])
        )
    except errors.GatedRepoError:
        raise ModelError(f"the hub gives {name} only to accounts that were granted access (HF_TOKEN)") from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise ModelError(f"{name} is neither a folder nor a model of the hub") from None
    except errors.RevisionNotFoundError:
        raise ModelError(f"the hub has no such revision of {name}") from None
    except Exception as error:
        # No network, a proxy, a full disk: the client's messages are long and contain URLs and paths.
        raise ModelError(
            f"{name} is neither a folder nor in the hub's cache, and the hub can't be reached ({type(error).__name__})"
        ) from None
