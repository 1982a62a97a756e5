"""sentence-transformers' settings: sentence_bert_config.json and config_sentence_transformers.json.

Every key of releases 2 to 6.2 is followed, known to have no effect on a vector, or refused by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tritonembed_engine.errors import ModelError
from tritonembed_engine.model.folder import read_object
from tritonembed_engine.model.modules import OTHER_FAMILIES

SETTINGS_FILES = tuple(
    f"sentence_{family}_config.json"
    for family in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""sentence-transformers' file of the transformer's settings; older releases named it after the model. The first file
that is not empty counts."""

_OLD_NAMES = {"model_args": "model_kwargs", "tokenizer_args": "processor_kwargs", "config_args": "config_kwargs"}
_KNOWN = {
    "max_seq_length",
    "do_lower_case",
    "transformer_task",
    "modality_config",
    "module_output_name",
    "processing_kwargs",
    "unpad_inputs",
    "query_length",
    "document_length",
    "query_expansion",
    "tokenizer_name_or_path",
    "model_kwargs",
    "processor_kwargs",
    "config_kwargs",
}
_HUB_OPTIONS = {
    "token",
    "cache_dir",
    "revision",
    "local_files_only",
    "trust_remote_code",
    "subfolder",
    "use_auth_token",
}
"""sentence-transformers overwrites these with its own arguments."""

_TOKENIZER_OPTIONS = {
    "model_max_length",
    "do_lower_case",
    "strip_accents",
    "tokenize_chinese_chars",
    "add_prefix_space",
    "add_bos_token",
    "add_eos_token",
    "truncation_side",
}
_HARMLESS_TOKENIZER_OPTIONS = {"padding_side", "use_fast", "clean_up_tokenization_spaces"}
_HARMLESS_MODEL_OPTIONS = {
    "attn_implementation",
    "add_pooling_layer",
    "low_cpu_mem_usage",
    "use_safetensors",
    "torch_dtype",
    "dtype",
    "device_map",
}
_HARMLESS_CONFIG_OPTIONS = {"use_memory_efficient_attention", "unpad_inputs", "use_cache", "use_flash_attn"}
_TEXT_MODALITY = {"method": "forward", "method_output_name": "last_hidden_state"}
_OUTPUTS = {"token_embeddings": "the last hidden state", "sentence_embedding": "the text's features"}
_CROSS_ENCODER_TASKS = ("sequence-classification", "text-generation")
_HARMLESS_PROCESSING: dict[str, tuple[Any, ...]] = {
    "add_special_tokens": (True,),
    # Other values make padding count as tokens of the prompt or the text.
    "padding": (True, False, "longest", "do_not_pad"),
    "return_attention_mask": (True,),
    "return_token_type_ids": (True, False),
    "truncation": (True, "longest_first", "only_first"),
}
"""Arguments of the tokenizer's call, and their values without effect on a vector."""

_CONFIG_KEYS = {
    "requirements",
    "__version__",
    "prompts",
    "default_prompt_name",
    "similarity_fn_name",
    "truncate_dim",
    "model_type",
    # Of a CrossEncoder alone.
    "activation_fn",
}


@dataclass(frozen=True)
class SentenceSettings:
    """The contents of the two files, with sentence-transformers' defaults.

    max_seq_length, query_length, document_length: tokens; None if the files have none. tokenizer_options: arguments
    of `AutoTokenizer.from_pretrained`. truncate_dim: the default of `dimensions`. unknown: keys without effect.
    """

    max_seq_length: int | None = None
    query_length: int | None = None
    document_length: int | None = None
    lowercase: bool = False
    tokenizer_options: Mapping[str, Any] = field(default_factory=dict)
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    truncate_dim: int | None = None
    unknown: tuple[str, ...] = ()
    own: Mapping[str, Any] = field(default_factory=dict)
    """All settings of the transformer."""


def read_sentence_settings(
    folder: Path,
    transformer: Path,
    features: Mapping[str, str] | None = None,
    kinds: Sequence[str] = ("SentenceTransformer",),
) -> SentenceSettings:
    """Both files of a model. Raises ModelError, which names the file and the key, for a key that would change a vector.

    folder: of the model. transformer: the folder of its transformer. features: how a model that pools itself is called,
    as `modality_config` has it. kinds: the values of `model_type` that are served; the first is the default.
    sentence-transformers reads neither file if there is no modules.json.
    """
    prompts, default, truncate_dim, unknown = _read_config(folder, kinds)
    if not (folder / "modules.json").exists():
        return SentenceSettings()
    without_transformer = SentenceSettings(
        prompts=prompts, default_prompt_name=default, truncate_dim=truncate_dim, unknown=unknown
    )
    name, settings = next(
        ((file, found) for file in SETTINGS_FILES if (found := read_object(transformer / file))),
        (SETTINGS_FILES[0], {}),
    )
    if not settings:
        return without_transformer
    # An old name wins over the new one.
    settings |= {new: settings.pop(old) for old, new in _OLD_NAMES.items() if old in settings}
    for key in settings:
        if key not in _KNOWN:
            raise ModelError(f"{name} has an unknown key: {key[:40]}")
    if "CrossEncoder" in kinds:
        _check_cross_encoder(name, settings)
    else:
        _refuse_other_tasks(name, settings, features, "SparseEncoder" in kinds, "MultiVectorEncoder" in kinds)
    _refuse_others(name, settings, "model_kwargs", _HARMLESS_MODEL_OPTIONS)
    _refuse_others(name, settings, "config_kwargs", _HARMLESS_CONFIG_OPTIONS)
    _refuse_others(name, settings, "processor_kwargs", _TOKENIZER_OPTIONS | _HARMLESS_TOKENIZER_OPTIONS)
    options = _section(name, settings, "processor_kwargs")
    # The arguments of the call win over the lengths of the tasks, and those over the tokenizer's own.
    processing = _processing(name, settings)
    called = _length(name, "max_length", processing.get("max_length"))
    by_task = settings if "max_length" not in processing else {}
    own = _length(name, "model_max_length", options.get("model_max_length"))
    return replace(
        without_transformer,
        own=settings,
        max_seq_length=called or own or _length(name, "max_seq_length", settings.get("max_seq_length")),
        query_length=_length(name, "query_length", by_task.get("query_length")),
        document_length=_length(name, "document_length", by_task.get("document_length")),
        lowercase=bool(settings.get("do_lower_case")),
        tokenizer_options={key: value for key, value in options.items() if key in _TOKENIZER_OPTIONS},
    )


def _read_config(folder: Path, kinds: Sequence[str]) -> tuple[dict[str, str], str | None, int | None, tuple[str, ...]]:
    """config_sentence_transformers.json: prompts, the default's name, truncate_dim, unknown keys."""
    name = "config_sentence_transformers.json"
    config = read_object(folder / name)
    kind = config.get("model_type", kinds[0])
    if kind not in kinds and str(kind) in OTHER_FAMILIES:
        raise ModelError(f"it is {OTHER_FAMILIES[str(kind)]}, not an embedding model")
    if kind not in kinds:
        # sentence-transformers would ignore all its other files.
        raise ModelError(f"{name}: the model_type {str(kind)[:40]!r} can't be served")
    given = config.get("prompts", {})
    if not isinstance(given, dict) or not all(text is None or isinstance(text, str) for text in given.values()):
        raise ModelError(f"{name}: prompts is not an object of texts")
    if config.get("requirements"):
        raise ModelError(f"{name}: requirements can't be checked")
    prompts = {key: text or "" for key, text in given.items()}
    default = config.get("default_prompt_name")
    # In sentence-transformers every model has these two; they are empty unless the file defines them.
    if default is not None and default not in {*prompts, "query", "document"}:
        raise ModelError(f"the model's default prompt {str(default)[:40]!r} is not among its prompts")
    truncate_dim = _length(name, "truncate_dim", config.get("truncate_dim"))
    unknown = tuple(f"{name}: {key}" for key in config if key not in _CONFIG_KEYS)
    return prompts, default, truncate_dim, unknown


def _refuse_other_tasks(
    name: str, settings: dict[str, Any], features: Mapping[str, str] | None, has_logits: bool, expands: bool
) -> None:
    """has_logits: whether the model is a masked language model, whose output is its logits (SPLADE). expands: whether
    queries may be expanded (ColBERT)."""
    own = "fill-mask" if has_logits else "feature-extraction"
    task = settings.get("transformer_task", own)
    if task == "sequence-classification":
        raise ModelError("it is a reranker (CrossEncoder), not an embedding model")
    if task == "fill-mask" != own:
        raise ModelError("it is a sparse encoder (SPLADE), not a dense one")
    if task != own:
        raise ModelError(f"{name}: the transformer_task {str(task)[:40]!r} can't be served")
    expected, feature = (features, "sentence_embedding") if features else (_TEXT_MODALITY, "token_embeddings")
    if has_logits:
        expected = {**_TEXT_MODALITY, "method_output_name": "logits"}
    modalities = settings.get("modality_config", {"text": expected})
    if not isinstance(modalities, dict) or not all(isinstance(entry, dict) for entry in modalities.values()):
        raise ModelError(f"{name}: modality_config is not an object of objects")
    if "message" in modalities:
        raise ModelError(f"{name}: every text goes through a chat template (modality_config has message)")
    if list(modalities) != ["text"] and not (features and "text" in modalities):
        raise ModelError(f"{name}: modality_config has {', '.join(map(str, modalities))}; only text can be served")
    output = modalities["text"].get("method_output_name")
    if isinstance(output, list) and len(output) == 1:
        output = output[0]
    if {"method": modalities["text"].get("method"), "method_output_name": output} != dict(expected):
        raise ModelError(f"{name}: modality_config takes another output than {_OUTPUTS[feature]}")
    unnamed = None if "modality_config" in settings else feature
    if settings.get("module_output_name", unnamed) != feature:
        raise ModelError(f"{name}: module_output_name is not {feature}")
    for key in ("query_expansion", "tokenizer_name_or_path"):
        if settings.get(key) is not None and not (expands and key == "query_expansion"):
            raise ModelError(f"{name}: {key} can't be followed")


def _check_cross_encoder(name: str, settings: dict[str, Any]) -> None:
    task = settings.get("transformer_task", _CROSS_ENCODER_TASKS[0])
    if task not in _CROSS_ENCODER_TASKS:
        raise ModelError(f"{name}: the transformer_task {str(task)[:40]!r} of a reranker can't be served")
    for key in ("query_expansion", "tokenizer_name_or_path"):
        if settings.get(key) is not None:
            raise ModelError(f"{name}: {key} can't be followed")


def _section(name: str, settings: dict[str, Any], key: str) -> dict[str, Any]:
    section = settings.get(key, {})
    if not isinstance(section, dict):
        raise ModelError(f"{name}: {key} is not an object")
    return section


def _refuse_others(name: str, settings: dict[str, Any], section: str, allowed: set[str]) -> None:
    for key in _section(name, settings, section):
        if key not in allowed and key not in _HUB_OPTIONS:
            raise ModelError(f"{name}: {section} has {key[:40]}, which can't be followed")


def _processing(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the tokenizer's call: `max_length` is followed; those that shape the padding have no effect."""
    given = _section(name, {"processing_kwargs": settings.get("processing_kwargs") or {}}, "processing_kwargs")
    called: dict[str, Any] = {}
    for part in ("text", "common"):
        called |= _section(name, given, part)
    for key, value in called.items():
        # 1 is equal to True.
        harmless = any(value is allowed or value == allowed != 1 for allowed in _HARMLESS_PROCESSING.get(key, ()))
        if key != "max_length" and not harmless:
            raise ModelError(f"{name}: processing_kwargs has {key[:40]}, which can't be followed")
    return called


def _length(name: str, key: str, value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelError(f"{name}: {key} is not a whole number of at least 1")
    return value
