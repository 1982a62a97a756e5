"""What a model's own files say, as sentence-transformers reads them.

Needs neither torch nor vLLM: the manager asks before it starts anything.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonembed_engine.errors import ModelError
from tritonembed_engine.model.folder import find_model_folder, read_object, short_name
from tritonembed_engine.model.modules import read_sentence_modules

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
)
SETTINGS_FILES = tuple(
    f"sentence_{family}_config.json"
    for family in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Where sentence-transformers keeps `max_seq_length`; older releases named it for the model. The first found counts."""

OFFSET_POSITIONS = (
    "camembert",
    "data2vec-text",
    "ibert",
    "longformer",
    "luke",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)
"""Model types whose first position is `pad_token_id + 1`, so that the rows before it hold no token."""

NO_LIMIT = 10**9
"""transformers writes 1e30 for a tokenizer without a limit."""

_OTHER_INPUTS = ("vision_config", "audio_config", "image_size", "num_mel_bins", "conv_dim")
_HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice")
_NAMES = {
    "hidden_size": ("hidden_size", "n_embd", "d_model", "dim"),
    "max_position_embeddings": ("max_position_embeddings", "n_positions"),
}


@dataclass(frozen=True)
class ModelFiles:
    """A model as its files describe it."""

    name: str
    """The last component of its name or folder; messages say no more."""

    folder: Path
    """Its configuration and tokenizer; for a model of the hub a folder of the hub's cache, without the weights."""

    is_local: bool
    """Whether the model was given as a folder."""

    architectures: tuple[str, ...]
    """Class names from config.json, such as "BertModel"."""

    is_decoder: bool
    """Whether it was built as a causal language model."""

    hidden_size: int
    dimensions: int
    """Length of a vector, Dense modules included."""

    vocab_size: int
    """Rows of the embedding table: ids are below this."""

    max_length: int
    """Tokens in one text, special tokens included."""

    pooling: str
    """As vLLM names it: "CLS", "MEAN" or "LAST"."""

    normalize: bool
    """Whether the model's modules end with a normalisation."""

    lowercase: bool
    """Whether sentence-transformers lowercases before the tokenizer (`do_lower_case`)."""

    prompts: Mapping[str, str]
    default_prompt_name: str | None

    def prompt_for(self, input_type: str | None) -> str:
        """What is prepended to a text. input_type: "query", "passage" or None (the model's default prompt).

        A model without such a prompt gets nothing prepended.
        """
        if input_type is None:
            return self.prompts.get(self.default_prompt_name or "", "")
        if input_type == "passage" and "passage" not in self.prompts:
            input_type = "document"
        return self.prompts.get(input_type, "")


def read_model_files(model: str, revision: str | None = None, max_length: int | None = None) -> ModelFiles:
    """Describe a model; only its configuration and tokenizer files are read or fetched.

    model: a folder, or a name on the hub (then `revision` may be a branch, tag or commit). max_length: tokens of the
    longest text that is to be served, where that is less than the model's own maximum; vLLM's -1 (`auto`) is that one.
    Raises ModelError, one readable line, for what is missing or can't be served as a text embedder.
    """
    folder, is_local = find_model_folder(model, revision)
    name = short_name(model)
    config = read_object(folder / "config.json")
    if not config:
        raise ModelError(f"{name} is not a model: it has no config.json")
    has_modules = (folder / "modules.json").exists()
    architectures = _text_architectures(name, config, has_modules)
    if not any((folder / file).exists() for file in TOKENIZER_FILES):
        raise ModelError(f"{name} has no tokenizer")
    modules = read_sentence_modules(folder)
    settings = next(filter(None, (read_object(folder / file) for file in SETTINGS_FILES)), {}) if has_modules else {}
    hidden_size = _number(name, config, "hidden_size")
    limit = max_length if max_length and max_length > 0 else NO_LIMIT
    prompts, default_prompt_name = _prompts(folder)
    return ModelFiles(
        name=name,
        folder=folder,
        is_local=is_local,
        architectures=architectures,
        is_decoder=bool(architectures) and architectures[0].endswith("ForCausalLM"),
        hidden_size=hidden_size,
        dimensions=modules.dimensions or hidden_size,
        vocab_size=_number(name, config, "vocab_size"),
        max_length=min(limit, _max_length(name, folder, config, settings)),
        pooling=modules.pooling,
        normalize=modules.normalize,
        lowercase=bool(settings.get("do_lower_case")),
        prompts=prompts,
        default_prompt_name=default_prompt_name,
    )


def _text_architectures(name: str, config: dict[str, Any], has_modules: bool) -> tuple[str, ...]:
    architectures = tuple(config.get("architectures") or ())
    if (
        config.get("is_encoder_decoder")
        or any(key in config for key in _OTHER_INPUTS)
        or not (architectures or "model_type" in config)
    ):
        raise ModelError(f"{name} is not a text embedding model (model type {config.get('model_type', 'unknown')})")
    if not has_modules and architectures and architectures[0].endswith(_HEADS):
        raise ModelError(f"{name} is not an embedding model but a classifier ({architectures[0]})")
    if not has_modules and any(kind.endswith("ForCausalLM") for kind in architectures):
        raise ModelError(f"{name} is not an embedding model: it generates text, and has no sentence-transformers files")
    return architectures


def _max_length(name: str, folder: Path, config: dict[str, Any], settings: dict[str, Any]) -> int:
    """What sentence-transformers' settings state, else the tokenizer; never more than the model has positions for."""
    tokenizer_settings = settings.get("processor_kwargs") or settings.get("tokenizer_args") or {}
    stated = tokenizer_settings.get("model_max_length") or settings.get("max_seq_length")
    if not stated:
        stated = read_object(folder / "tokenizer_config.json").get("model_max_length")
    limits = [int(stated)] if stated else []
    positions = _setting(config, "max_position_embeddings")
    if isinstance(positions, int) and positions > 0:
        if config.get("model_type") in OFFSET_POSITIONS:
            padding = _setting(config, "pad_token_id")
            positions -= (1 if padding is None else padding) + 1
        limits.append(positions)
    if not limits or min(limits) >= NO_LIMIT:
        raise ModelError(f"{name} does not say how many tokens a text may have (max_seq_length)")
    return min(limits)


def _prompts(folder: Path) -> tuple[dict[str, str], str | None]:
    config = read_object(folder / "config_sentence_transformers.json")
    prompts = {name: text or "" for name, text in (config.get("prompts") or {}).items()}
    default = config.get("default_prompt_name")
    # For sentence-transformers every model has these two, empty unless the file says otherwise.
    if default is not None and default not in {*prompts, "query", "document"}:
        raise ModelError(f"the model's default prompt {str(default)[:40]!r} is not among its prompts")
    return prompts, default


def _number(name: str, config: dict[str, Any], key: str) -> int:
    value = _setting(config, key)
    if not isinstance(value, int) or value < 1:
        raise ModelError(f"{name} is not a text embedding model: its config.json has no {key}")
    return value


def _setting(config: dict[str, Any], key: str) -> Any:
    """A value of config.json under any of the names it goes by; what the file leaves out, transformers knows."""
    for name in _NAMES.get(key, (key,)):
        if name in config:
            return config[name]
    return getattr(_defaults(config.get("model_type", "")), key, None)


@functools.cache
def _defaults(model_type: str) -> Any:
    # Rarely needed (files written by hand, or by very old releases), and it brings in torch.
    try:
        from transformers import AutoConfig

        return AutoConfig.for_model(model_type)
    except (ImportError, ValueError):
        return None
