"""A model as its own files describe it, read as sentence-transformers reads them.

Needs neither torch nor vLLM: the manager reads the files before it starts anything.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonembed_engine.errors import InvalidArgument, ModelError
from tritonembed_engine.model.architecture import check_architecture, is_causal
from tritonembed_engine.model.encoders import ENCODERS_OF_PAIRS, has_relative_positions, reason_against_vllm
from tritonembed_engine.model.folder import find_model_folder, read_object, short_name
from tritonembed_engine.model.instructions import fill, instruction_template
from tritonembed_engine.model.modules import Pooling, Step, find_transformer, read_sentence_modules
from tritonembed_engine.model.sentence_settings import SentenceSettings, read_sentence_settings

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
    "spm.model",
)
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
"""Model types whose first position is `pad_token_id + 1`; the rows before it are for no token."""

NO_LIMIT = 10**9
"""transformers writes 1e30 for a tokenizer without a limit."""

_NAMES = {
    "hidden_size": ("hidden_size", "n_embd", "d_model", "dim"),
    "max_position_embeddings": ("max_position_embeddings", "n_positions"),
}


@dataclass(frozen=True)
class ModelFiles:
    """A model as its files describe it."""

    name: str
    """The last component of its name or folder, for messages."""

    folder: Path
    """The model's folder; of a model on the hub, a folder of the hub's cache without the transformer's weights."""

    transformer: Path
    """The transformer's configuration and tokenizer: `folder`, except in the oldest layout (`0_Transformer`)."""

    is_local: bool
    """Whether the model was given as a folder."""

    architectures: tuple[str, ...]
    """Class names from config.json, such as "BertModel"."""

    is_causal: bool
    """Whether a token attends only to itself and the tokens before it, as far as config.json shows."""

    hidden_size: int
    dimensions: int
    """Length of a vector, Dense modules included."""

    vocab_size: int
    """Rows of the embedding table; ids are below this number."""

    max_length: int
    """Tokens of the longest text of any request, special tokens included."""

    lengths: Mapping[str | None, int]
    """Tokens of the longest text by `input_type`, which may be None; at most `max_length`."""

    pooling: tuple[Pooling, ...]
    """sentence-transformers' names; the vectors of several stand side by side."""

    include_prompt: bool
    """Whether the tokens of a prompt are pooled."""

    steps: tuple[Step, ...]
    """The steps after the pooling, without a normalisation at the end."""

    normalize: bool
    """Whether the model's modules end with a normalisation."""

    lowercase: bool
    """Whether sentence-transformers lowercases before the tokenizer (`do_lower_case`)."""

    truncate: str
    """The end that a too long text loses, "END" or "START", by the tokenizer's `truncation_side`."""

    truncate_dim: int | None
    """The default of `dimensions`."""

    tokenizer_options: Mapping[str, Any]
    """Arguments of `AutoTokenizer.from_pretrained` from sentence-transformers' settings."""

    prompts: Mapping[str, str]
    default_prompt_name: str | None

    instruction_template: str | None
    """The prompt of a query with an instruction, which stands at `{instruction}`; None if none is known."""

    padding_id: int | None
    """If positions begin after padding's: the id that gets padding's position in transformers."""

    model_type: str
    """The family, as config.json names it."""

    reason_against_vllm: str | None
    """Why vLLM can't serve the model, but transformers can; None if vLLM can."""

    unknown: tuple[str, ...]
    """Keys of the files that have no effect, here or in sentence-transformers, as "file: key"."""

    def prompt_for(
        self,
        input_type: str | None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        instruction: str | None = None,
    ) -> str:
        """The prompt of a text: the one with `instruction`, else `prompt`, else the one named `prompt_name`, else the
        input type's, else the default.

        input_type: "query" or "passage" (in sentence-transformers' order: document, passage, corpus); if the model has
        no such prompt, there is none. Raises InvalidArgument for a name that the model does not have, and for an
        instruction if the model has no template.
        """
        if instruction is not None:
            if self.instruction_template is None:
                raise InvalidArgument("instruction", "the model has no instruction template; send the whole as prompt")
            return fill(self.instruction_template, instruction)
        if prompt is not None:
            return prompt
        if prompt_name is not None:
            # In sentence-transformers every model has these two; they are empty unless its files define them.
            prompts = {"query": "", "document": "", **self.prompts}
            if prompt_name not in prompts:
                raise InvalidArgument("prompt_name", f"is not one of the model's: {', '.join(sorted(prompts))[:200]}")
            return prompts[prompt_name]
        if input_type is None:
            return self.prompts.get(self.default_prompt_name or "", "")
        names = ("query",) if input_type == "query" else ("document", "passage", "corpus")
        return next((self.prompts[name] for name in names if name in self.prompts), "")


def read_model_files(
    model: str, revision: str | None = None, max_length: int | None = None, template: str | None = None
) -> ModelFiles:
    """Describe a model; only its configuration and tokenizer files are read or fetched.

    model: a folder, or a name on the hub (then `revision` may be a branch, tag or commit). max_length: tokens of the
    longest text, if less than the model's own maximum; vLLM's -1 (`auto`) is that maximum. template: of instructions,
    instead of the model's own. Raises ModelError, one readable line, if a file is missing or the model can't be served
    as a text embedder.
    """
    folder, is_local = find_model_folder(model, revision)
    name = short_name(model)
    transformer = find_transformer(folder)
    config = read_object(transformer / "config.json")
    if not config:
        raise ModelError(f"{name} is not a model: it has no config.json{_what_it_is(folder)}")
    has_modules = (folder / "modules.json").exists()
    architectures = check_architecture(name, config, has_modules)
    tokenizer_config = read_object(transformer / "tokenizer_config.json")
    if not any((transformer / file).exists() for file in TOKENIZER_FILES):
        raise ModelError(f"{name} has no tokenizer")
    if not has_modules and (tokenizer_config.get("chat_template") or (folder / "chat_template.jinja").exists()):
        raise ModelError(f"{name} has a chat template, which sentence-transformers would apply to every text")
    hidden_size = _number(name, config, "hidden_size")
    vocab_size = _number(name, config, "vocab_size")
    try:
        settings = read_sentence_settings(folder, transformer)
        modules = read_sentence_modules(folder, hidden_size)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from None
    positions = _positions(config, settings)
    lengths = _lengths(name, tokenizer_config, settings, positions, max_length)
    side = settings.tokenizer_options.get("truncation_side", tokenizer_config.get("truncation_side", "right"))
    return ModelFiles(
        name=name,
        folder=folder,
        transformer=transformer,
        is_local=is_local,
        architectures=architectures,
        is_causal=is_causal(config),
        hidden_size=hidden_size,
        dimensions=modules.dimensions,
        vocab_size=vocab_size,
        max_length=max(lengths.values()),
        lengths=lengths,
        pooling=modules.pooling,
        include_prompt=modules.include_prompt,
        steps=modules.steps,
        normalize=modules.normalize,
        lowercase=settings.lowercase,
        truncate="START" if side == "left" else "END",
        truncate_dim=settings.truncate_dim if (settings.truncate_dim or 0) < modules.dimensions else None,
        tokenizer_options={
            key: value for key, value in settings.tokenizer_options.items() if key != "model_max_length"
        },
        prompts=settings.prompts,
        default_prompt_name=settings.default_prompt_name,
        instruction_template=template or instruction_template(name, settings.prompts),
        padding_id=_padding_id(config) if config.get("model_type") in OFFSET_POSITIONS else None,
        model_type=str(config.get("model_type", "")),
        reason_against_vllm=reason_against_vllm(config),
        unknown=settings.unknown + modules.unknown,
    )


def _what_it_is(folder: Path) -> str:
    """What a folder without config.json is instead, to append to the message."""
    if (folder / "adapter_config.json").exists():
        return " (it is a LoRA adapter; adapters are not served)"
    if (folder / "0_CLIPModel").exists():
        return " (it is a CLIP model)"
    if (folder / "modules.json").exists() and "StaticEmbedding" in (folder / "modules.json").read_text("utf-8"):
        return " (it is a static embedding model)"
    return ""


def _lengths(
    name: str,
    tokenizer_config: Mapping[str, Any],
    settings: SentenceSettings,
    positions: int | None,
    longest: int | None,
) -> dict[str | None, int]:
    """Tokens of the longest text by input type. positions: of the model. longest: the limit of the settings."""
    stated = settings.max_seq_length or tokenizer_config.get("model_max_length")
    limits = [limit for limit in (positions, longest if longest and longest > 0 else None) if limit]
    own = min([int(stated)] if stated else [], default=NO_LIMIT)
    lengths: dict[str | None, int] = {
        None: own,
        "query": settings.query_length or own,
        "passage": settings.document_length or own,
    }
    capped = {kind: min([length, *limits]) for kind, length in lengths.items()}
    if max(capped.values()) >= NO_LIMIT:
        raise ModelError(f"{name} sets no maximum number of tokens for a text (max_seq_length)")
    return capped


def _positions(config: dict[str, Any], settings: SentenceSettings) -> int | None:
    """How many tokens the model has positions for; None: no limit."""
    if has_relative_positions(config) and (settings.max_seq_length or config["model_type"] in ENCODERS_OF_PAIRS):
        # sentence-transformers then takes max_position_embeddings only for a model without max_seq_length; T5 has none.
        return None
    positions = _setting(config, "max_position_embeddings")
    if not isinstance(positions, int) or positions < 1:
        return None
    if config.get("model_type") in OFFSET_POSITIONS:
        positions -= _padding_id(config) + 1
    return positions


def _padding_id(config: dict[str, Any]) -> int:
    padding = _setting(config, "pad_token_id")
    return padding if isinstance(padding, int) else 0


def _number(name: str, config: dict[str, Any], key: str) -> int:
    value = _setting(config, key)
    if not isinstance(value, int) or value < 1:
        raise ModelError(f"{name} is not a text embedding model: its config.json has no {key}")
    return value


def _setting(config: dict[str, Any], key: str) -> Any:
    """A value of config.json under any of its names, or transformers' default."""
    for name in _NAMES.get(key, (key,)):
        if name in config:
            return config[name]
    return getattr(_defaults(config.get("model_type", "")), key, None)


@functools.cache
def _defaults(model_type: str) -> Any:
    # Imported here: rarely needed (files written by hand or by very old releases), and it imports torch.
    try:
        from transformers import AutoConfig

        return AutoConfig.for_model(model_type)
    except (ImportError, ValueError):
        return None
