"""LoRA adapters of a model: folders as peft saves them (adapter_config.json, adapter_model.safetensors).

An adapter adds scale · B · A to the weights of some layers (LoRA, arXiv 2106.09685). All other data that peft can store
in such a folder changes the vectors, too, and is refused. Needs neither torch nor vLLM, except for `read_pairs`.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritonembed_engine.errors import InvalidArgument, ModelError
from tritonembed_engine.model.checkpoint import UNUSED, tensors_of
from tritonembed_engine.model.contents import digests_of
from tritonembed_engine.model.files import ModelFiles
from tritonembed_engine.model.folder import find_model_folder, read_object, short_name, weights_folder
from tritonembed_engine.model.jina_v3 import in_parts, task_factors

if TYPE_CHECKING:
    import torch

    from tritonembed_engine.settings import ModelSettings

CONFIG = "adapter_config.json"
PROMPTS = "config_sentence_transformers.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
DIGITS = 12

_READ = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules", "peft_type", "bias")
_WITHOUT_EFFECT = (
    *("auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config"),
    *("exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern"),
    *("layers_to_transform", "loftq_config", "lora_dropout", "lora_ga_config", "megatron_core", "peft_version"),
    *("qalora_group_size", "revision", "runtime_config", "task_type"),
)
"""Keys of adapter_config.json that its weights already reflect, or that only concern training."""
_CHANGES_THE_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
"""Ways to begin a training that change the base model's own weights."""
_NAMED = {
    "use_dora": "DoRA scales the rows of the weights, which a product of two small matrices can't do",
    "modules_to_save": "it has whole layers of its own (modules_to_save)",
    "bias": "it has biases of its own (bias)",
}
_TENSOR = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<factor>[AB])(?:\.weight)?"
)


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter as its files describe it.

    files: the base model's, with the adapter's own prompts, if any. task: of an adapter in its base's own checkpoint;
    then `config` is the base's.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    files: ModelFiles
    task: str | None = None

    @property
    def digest(self) -> str:
        """A digest of what determines its vectors, apart from the base model."""
        if self.task is not None:
            return hashlib.sha256(f"task {self.task}".encode()).hexdigest()[:DIGITS]
        found = sorted(file for name in (CONFIG, PROMPTS, *WEIGHTS) if (file := self.folder / name).is_file())
        contents = [list(pair) for pair in zip([file.name for file in found], digests_of(found), strict=True)]
        return hashlib.sha256(json.dumps(contents).encode()).hexdigest()[:DIGITS]

    def rank_of(self, module: str) -> int:
        """The inner dimension of a layer's two matrices."""
        return int(_of_pattern(self.config, "rank_pattern", module, self.config["r"]))

    def scale_of(self, module: str) -> float:
        """The factor of a layer's product."""
        alpha = float(_of_pattern(self.config, "alpha_pattern", module, self.config.get("lora_alpha", 8)))
        rank = self.rank_of(module)
        return alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank


NO_ADAPTERS: Mapping[str, AdapterFiles] = {}


@dataclass(frozen=True)
class Pair:
    """The two matrices of one layer. module: the layer's path in transformers.

    a: float32 [rank, inputs]. b: float32 [outputs, rank], times the scale. of_table: whether the layer is a table of
    embeddings, whose inputs are ids.
    """

    module: str
    a: "torch.Tensor"
    b: "torch.Tensor"
    of_table: bool = False


def read_adapters(settings: "ModelSettings", files: ModelFiles) -> dict[str, AdapterFiles]:
    """The adapters of a model's settings, by name. Raises ModelError, which names the adapter."""
    return {name: read_adapter(name, path, files) for name, path in settings.adapters.items()}


def read_adapter(name: str, path: str, files: ModelFiles) -> AdapterFiles:
    """Describe an adapter of a model. path: a folder, a name on the hub, or one of the model's own tasks.

    Raises ModelError, in one line.
    """
    try:
        if path in files.tasks:
            return _of_task(name, path, files)
        if files.classifier is not None:
            raise ModelError(f"{files.name} is a reranker or classifier, whose adapters are not served")
        sparse = files.token_outputs.sparse
        if files.is_static or (sparse is not None and sparse.file is None):
            raise ModelError(
                f"{files.name} is a {'table' if files.is_static else 'SPLADE model'}, whose adapters are not served"
            )
        folder, is_local = find_model_folder(path)
        config = read_object(folder / CONFIG)
        if not config:
            raise ModelError(f"{short_name(path)} is not an adapter: it has no {CONFIG}")
        _check_config(config)
        _check_base(config, files)
        complete = weights_folder(path, None, folder, is_local)
        if not any((complete / file).is_file() for file in WEIGHTS):
            raise ModelError(f"{short_name(path)} has no weights ({WEIGHTS[0]})")
        return AdapterFiles(name, complete, config, _with_prompts(files, folder))
    except ModelError as error:
        raise ModelError(f"adapter {name}: {error}") from None


def files_of(files: ModelFiles, adapters: Mapping[str, AdapterFiles], name: str | None) -> ModelFiles:
    """The files with the prompts for a request. name: of its adapter; None: the base model.

    Raises InvalidArgument if there is no such adapter.
    """
    if name is None:
        return files
    if name not in adapters:
        known = ", ".join(sorted(adapters))
        raise InvalidArgument("adapter", f"the model has {f'no such adapter, but {known[:200]}' if known else 'none'}")
    return adapters[name].files


def read_pairs(adapter: AdapterFiles) -> Iterator[Pair]:
    """The matrices of every layer that vectors depend on. Raises ModelError, which names the adapter and the layer."""
    try:
        for pair in _pairs(adapter):
            if not any(f".{part}" in f".{pair.module}." for part in UNUSED):
                yield pair
    except ModelError as error:
        raise ModelError(f"adapter {adapter.name}: {error}") from None


def _of_task(name: str, task: str, files: ModelFiles) -> AdapterFiles:
    """A task of jina-embeddings-v3. Its prompt has the task's name, and is put before every text."""
    config = read_object(files.transformer / "config.json")
    own = replace(files, default_prompt_name=task) if task in files.prompts else files
    return AdapterFiles(name, files.transformer, config, own, task)


def _pairs_of_task(adapter: AdapterFiles, task: str) -> Iterator[Pair]:
    complete = adapter.folder
    scale = adapter.config["lora_alpha"] / adapter.config["lora_rank"]
    for module, a, b in task_factors(complete, task):
        if "word_embeddings" in module:
            # A table's first factor has its rows.
            yield Pair(module, a.float().t(), b.float().t() * scale, of_table=True)
            continue
        for part, rows in in_parts(module, b.float() * scale).items():
            yield Pair(part, a.float(), rows)


def _pairs(adapter: AdapterFiles) -> Iterator[Pair]:
    if adapter.task is not None:
        yield from _pairs_of_task(adapter, adapter.task)
        return
    factors: dict[str, dict[str, torch.Tensor]] = {}
    tables = set()
    for name, tensor in _tensors(adapter.folder):
        found = _TENSOR.fullmatch(name)
        if found is None:
            raise ModelError(f"its weight {name.removeprefix('base_model.model.')[:120]} is not one of LoRA's")
        module = found["module"]
        factors.setdefault(module, {})[found["factor"]] = tensor.float()
        if found["embedding"]:
            tables.add(module)
    _check_targets(adapter.config, list(factors))
    for module, both in sorted(factors.items()):
        a, b = both.get("A"), both.get("B")
        if a is None or b is None:
            raise ModelError(f"its weights are not complete: {module} has one of two matrices")
        rank = adapter.rank_of(module)
        if a.dim() != 2 or b.dim() != 2 or not a.shape[0] == b.shape[1] == rank:
            shapes = " and ".join("x".join(map(str, one.shape)) for one in (a, b))
            raise ModelError(f"{module} has matrices of {shapes}, but the rank {rank}")
        yield Pair(module, a, b * adapter.scale_of(module), module in tables)


def _tensors(folder: Path) -> "Iterator[tuple[str, torch.Tensor]]":
    file = next(file for name in WEIGHTS if (file := folder / name).is_file())
    try:
        yield from tensors_of(file)
    except Exception as error:
        # A download that was interrupted.
        raise ModelError(f"its {file.name} can't be read ({type(error).__name__})") from None


def _check_config(config: Mapping[str, Any]) -> None:
    """Raise ModelError for anything but plain LoRA."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ModelError(f"it is no LoRA adapter (peft_type {str(kind)[:40]})")
    start = str(config.get("init_lora_weights"))
    if start.startswith(_CHANGES_THE_BASE):
        raise ModelError(
            f"it was trained on changed weights of the base (init_lora_weights {start[:40]}); save it as plain LoRA "
            "(path_initial_model_for_weight_conversion)"
        )
    for key, reason in _NAMED.items():
        if config.get(key) not in (None, False, "none", [], {}):
            raise ModelError(f"{reason}; that is not served")
    others = sorted(key for key, value in config.items() if value and key not in (*_READ, *_WITHOUT_EFFECT, *_NAMED))
    if others:
        raise ModelError(f"peft's {', '.join(others[:3])} is not served")
    ranks = [config.get("r"), *_pattern(config, "rank_pattern").values()]
    if not all(type(rank) is int and rank > 0 for rank in ranks):
        raise ModelError("its rank (r, rank_pattern) must be a whole number of at least 1")
    alphas = [config.get("lora_alpha", 8), *_pattern(config, "alpha_pattern").values()]
    if not all(type(alpha) in (int, float) and math.isfinite(alpha) for alpha in alphas):
        raise ModelError("its lora_alpha (or alpha_pattern) must be a number")
    targets = config.get("target_modules")
    if not targets or not (isinstance(targets, str) or all(isinstance(one, str) for one in targets)):
        raise ModelError("it names no target_modules")


def _check_base(config: Mapping[str, Any], files: ModelFiles) -> None:
    """Raise ModelError if the adapter's base model on the hub is not the served model."""
    base = str(config.get("base_model_name_or_path") or "")
    last = base.rstrip("/").rpartition("/")[2]
    own = files.name.rpartition("/")[2]
    if last and not files.is_local and last.lower() != own.lower():
        raise ModelError(f"it was trained for {last[:80]}, not for {own}")


def _check_targets(config: Mapping[str, Any], modules: list[str]) -> None:
    """Raise ModelError if target_modules and the weights are not about the same layers."""
    targets = config["target_modules"]
    if not modules:
        raise ModelError("its file of weights is empty")
    if targets == "all-linear":
        return
    if isinstance(targets, str):
        try:
            other = [module for module in modules if not re.fullmatch(targets, module)]
        except re.error:
            raise ModelError("its target_modules is no regular expression") from None
    else:
        other = [module for module in modules if not any(_ends(module, target) for target in targets)]
        if missing := sorted(one for one in targets if not any(_ends(module, one) for module in modules)):
            raise ModelError(f"it has no weights for {missing[0][:80]} of its target_modules")
    if other:
        raise ModelError(f"it has weights for {other[0][:120]}, which its target_modules do not name")


def _ends(module: str, target: str) -> bool:
    return f".{module}".endswith(f".{target}")


def _pattern(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = config.get(key) or {}
    if not isinstance(found, dict):
        raise ModelError(f"its {key} is not a JSON object")
    return found


def _of_pattern(config: Mapping[str, Any], key: str, module: str, default: Any) -> Any:
    """The first key that matches the end of the layer's path, as in peft's `get_pattern_key`."""
    for pattern, value in _pattern(config, key).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _with_prompts(files: ModelFiles, folder: Path) -> ModelFiles:
    """The base's files with the prompts of the adapter's folder, which sentence-transformers saves there."""
    own = read_object(folder / PROMPTS)
    if "prompts" not in own:
        return files
    prompts = own["prompts"] or {}
    default = own.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(prompt, str) for prompt in prompts.values()):
        raise ModelError(f"its {PROMPTS} has prompts that are no texts")
    if default is not None and default not in prompts:
        raise ModelError(f"its {PROMPTS} has no prompt of the name default_prompt_name")
    return replace(files, prompts=prompts, default_prompt_name=default)
