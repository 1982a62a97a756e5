"""The embedding space: a short name for what determines a model's vectors, such as "3f2a9c01b7de-float32".

Vectors can be compared if their spaces are equal. The digits before the hyphen are a digest of the model: the contents
of its weights, its tokenizer and its configuration (pooling, modules after it, normalisation, prompts) and the settings
that change them. The word after it is the precision: two servers of one model may differ in it. Names and paths don't
count, so a copy of a folder has the same space on every machine. Any change of a file changes the space.
"""

import hashlib
import json
from fnmatch import fnmatch
from pathlib import Path

from tritonembed_engine.errors import ModelError
from tritonembed_engine.model.checkpoint import checkpoint_files
from tritonembed_engine.model.contents import digests_of
from tritonembed_engine.model.files import ModelFiles
from tritonembed_engine.model.folder import CONFIGURATION_FILES, read_object, weights_folder
from tritonembed_engine.settings import ModelSettings

VERSION = 1
"""The digest's version. Servers with another version count as other models, so it changes only if the vectors do."""

DIGITS = 12
SIXTEEN_BITS = ("bfloat16", "float16")
CHANGE_THE_MODEL = ("hf_overrides", "rope_scaling", "rope_theta", "tokenizer", "tokenizer_revision")
"""Engine arguments that change the model. The precision has its own word; others change speed and memory."""


def embedding_space(settings: ModelSettings, files: ModelFiles, dtype: str) -> str:
    """The space of a model. dtype: the type that it computes in, by torch's name.

    It reads all of the weights, unless their digest is cached: about a second per GB and core, in parallel for shards.
    """
    listed = _files(settings, files)
    contents = [list(pair) for pair in zip(listed, digests_of(list(listed.values())), strict=True)]
    chosen = {name: settings.vllm[name] for name in CHANGE_THE_MODEL if settings.vllm.get(name) is not None}
    made_of = [VERSION, contents, chosen]
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:DIGITS]
    return f"{digest}-{precision_of(settings, files, dtype)}"


def precision_of(settings: ModelSettings, files: ModelFiles, dtype: str) -> str:
    """The quantization's name if there is one; else "16bit" for both types of 16 bits, or the type's name."""
    stored = read_object(files.transformer / "config.json").get("quantization_config")
    quantization = settings.vllm.get("quantization") or (isinstance(stored, dict) and stored.get("quant_method"))
    if quantization:
        return str(quantization)
    return "16bit" if dtype in SIXTEEN_BITS else dtype


def _files(settings: ModelSettings, files: ModelFiles) -> dict[str, Path]:
    """The files that determine the vectors, by their name in the model's folder, in order."""
    patterns = [*CONFIGURATION_FILES, *(["*.py"] if settings.vllm.get("trust_remote_code") else [])]
    found = {}
    for file in files.folder.rglob("*"):
        name = file.relative_to(files.folder).as_posix()
        if file.is_file() and any(fnmatch(name, pattern) for pattern in patterns):
            found[name] = file
    weights = weights_folder(settings.model, settings.revision, files.transformer, files.is_local)
    # On the hub, the weights can be in another folder of the cache than the configuration.
    inside = files.folder if weights.is_relative_to(files.folder) else weights
    for file in _weights(weights):
        found[file.relative_to(inside).as_posix()] = file
    return dict(sorted(found.items()))


def _weights(folder: Path) -> list[Path]:
    try:
        return checkpoint_files(folder)
    except ModelError:
        # Shards without an index, which vLLM reads, too.
        return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
