"""The folder that vLLM loads: the transformer alone, with a config.json in the words of the class that serves it.

vLLM reads sentence-transformers' files too, but not all that they can say, and goes on without what it does not know.
So it gets none of them: pooling and what follows it are the engine's. Links cost nothing; weights are copied only where
those of a head have to be left out, or where vLLM knows them by other names.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tritonembed_engine.model.architecture import WITH_HEAD, config_for_vllm
from tritonembed_engine.model.checkpoint import has_prefix, write_without_prefix
from tritonembed_engine.model.folder import read_object
from tritonembed_engine.model.native import hub_config, is_native, write_with_hub_names

_LEFT_OUT = ("modules.json", "config_sentence_transformers.json", "config.json")
_WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json", "*.bin.index.json", "*.pt", "*.pth", "*.gguf")


@contextlib.contextmanager
def vllm_folder(transformer: Path) -> Iterator[Path]:
    """The folder, which has the model's own name, until the block ends; then vLLM has read what it needs.

    transformer: the folder of the transformer's files, weights among them. Raises ModelError where they are missing.
    """
    config = read_object(transformer / "config.json")
    prefix, encoder = WITH_HEAD.get(str(config.get("model_type")), ("", ""))
    with tempfile.TemporaryDirectory(prefix="tritonembed-model-") as parent:
        folder = Path(parent) / (transformer.resolve().name or "model")
        folder.mkdir()
        headed = bool(prefix) and not config.get("quantization_config") and has_prefix(transformer, prefix)
        native = is_native(config)
        told = config_for_vllm(hub_config(config) if native else config)
        if headed:
            told["architectures"] = [encoder]
        for file in transformer.iterdir():
            is_sentence_file = file.name in _LEFT_OUT or file.name.startswith("sentence_")
            is_weights = any(file.match(pattern) for pattern in _WEIGHTS)
            if file.is_file() and not is_sentence_file and not ((headed or native) and is_weights):
                (folder / file.name).symlink_to(file.resolve())
        (folder / "config.json").write_text(json.dumps(told))
        if headed:
            write_without_prefix(transformer, folder, prefix)
        elif native:
            write_with_hub_names(transformer, folder, str(config["model_type"]))
        yield folder
