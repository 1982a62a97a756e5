"""A model as its own files describe it, read as sentence-transformers reads them.

Needs neither torch nor vLLM: the manager reads the files before it starts anything.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tritonembed_engine.errors import InvalidArgument, ModelError
from tritonembed_engine.instructions import fill, instruction_template
from tritonembed_engine.model.architecture import check_architecture, is_causal
from tritonembed_engine.model.classifier import Classifier, is_classifier, read_classifier, reason_against_types
from tritonembed_engine.model.clip import TEXT_MODALITY, text_tower
from tritonembed_engine.model.encoders import reason_against_vllm
from tritonembed_engine.model.folder import find_model_folder, read_object, short_name, weights_folder
from tritonembed_engine.model.hub_code import JINA_BERT, is_jina_bert
from tritonembed_engine.model.jina_v3 import JINA_V3, is_jina_v3, tasks_of
from tritonembed_engine.model.late_interaction import MODEL_TYPES, STANFORD, is_late_interaction, read_late_interaction
from tritonembed_engine.model.modules import (
    Pooling,
    SentenceModules,
    Step,
    find_transformer,
    read_modules_after,
    read_sentence_modules,
)
from tritonembed_engine.model.routes import check_tokenizers, read_routes
from tritonembed_engine.model.sentence_settings import read_sentence_settings
from tritonembed_engine.model.sizes import (
    NO_LIMIT,
    OFFSET_POSITIONS,
    padding_id_of,
    positions_of,
    size_of,
    text_lengths,
)
from tritonembed_engine.model.static import STATIC, read_table_head, static_folder
from tritonembed_engine.model.token_outputs import TokenOutputs, is_splade, read_splade, read_token_outputs

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
    "spm.model",
)


@dataclass(frozen=True)
class ModelFiles:
    """A model as its files describe it."""

    name: str
    """The last component of its name or folder, for messages."""

    folder: Path
    """The model's folder. For a model on the hub it is a folder of the hub's cache, without the transformer's
    weights."""

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
    """The poolings, whose vectors stand side by side; empty if the model pools itself."""

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

    markers: tuple[str, ...] = ()
    """Texts of prompts that are one token each, although the tokenizer would split them (ColBERT)."""

    token_outputs: TokenOutputs = field(default_factory=TokenOutputs)
    """Outputs other than the dense vector, which are made of tokens."""

    classifier: Classifier | None = None
    """A reranker or classifier: then `pooling` and `steps` are those of its head, and `dimensions` its labels."""

    tasks: tuple[str, ...] = ()
    """Adapters in the model's own checkpoint (jina-embeddings-v3)."""

    empty_id: int | None = None
    """The id that stands for a text without tokens; None: such a text is refused."""

    @property
    def has_token_types(self) -> bool:
        """Whether tokens of a pair's second text are marked (TYPE_BIT)."""
        return self.classifier is not None and self.classifier.token_types > 1

    @property
    def is_static(self) -> bool:
        """Whether the model is a table of static embeddings, which no transformer reads."""
        return self.model_type == STATIC

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


def _is_late_interaction(name: str, folder: Path, config: Mapping[str, Any]) -> bool:
    try:
        return is_late_interaction(folder, config)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from None


def read_model_files(
    model: str, revision: str | None = None, max_length: int | None = None, template: str | None = None
) -> ModelFiles:
    """Describe a model; only its configuration and tokenizer files are read or fetched.

    model: a folder, or a name on the hub (then `revision` may be a branch, tag or commit). max_length: tokens of the
    longest text, if less than the model's own maximum; vLLM's -1 (`auto`) is that maximum. template: of instructions,
    instead of the model's own. Raises ModelError, one readable line, if a file is missing or the model can't be served
    as a text embedder or as a classifier.
    """
    folder, is_local = find_model_folder(model, revision)
    name = short_name(model)
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{name} is a LoRA adapter (adapter_config.json): serve its base model, and this with --adapter"
        )
    if (place := static_folder(folder)) is not None:
        try:
            weights_folder(model, revision, place, is_local)
            return _read_static_files(name, folder, place, is_local, max_length, template)
        except ModelError as error:
            raise ModelError(f"{name}: {error}") from None
    try:
        routes = read_routes(folder)
        transformer = folder / routes.document[0][1] if routes else find_transformer(folder)
        if routes:
            check_tokenizers(folder / routes.query, transformer)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from None
    config = read_object(transformer / "config.json")
    if not config:
        raise ModelError(f"{name} is not a model: it has no config.json")
    has_modules = (folder / "modules.json").exists()
    classifies = is_classifier(config, folder)
    multi_vector = not classifies and _is_late_interaction(name, folder, config)
    whole = config
    if multi_vector:
        # Else vLLM would look for the class of Stanford's code.
        config = {**config, "architectures": [one for one in config.get("architectures") or () if one != STANFORD]}
    architectures = check_architecture(name, config, has_modules, classifies)
    try:
        tower = text_tower(config, folder)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from None
    config = tower or config
    tokenizer_config = read_object(transformer / "tokenizer_config.json")
    if not any((transformer / file).exists() for file in TOKENIZER_FILES):
        raise ModelError(f"{name} has no tokenizer")
    chats = tokenizer_config.get("chat_template") or (folder / "chat_template.jinja").exists()
    if chats and not has_modules and not classifies:
        raise ModelError(f"{name} has a chat template, which sentence-transformers would apply to every text")
    hidden_size = size_of(name, config, "hidden_size")
    vocab_size = size_of(name, config, "vocab_size")
    try:
        splade = is_splade(folder)
        kinds: tuple[str, ...] = ("SentenceTransformer",)
        if classifies:
            kinds = ("CrossEncoder",)
        elif splade:
            kinds = ("SparseEncoder",)
        elif multi_vector:
            kinds = MODEL_TYPES
        settings = read_sentence_settings(folder, transformer, TEXT_MODALITY if tower else None, kinds)
        if routes and settings.lowercase:
            raise ModelError("do_lower_case can't be followed for documents alone")
        token_outputs = TokenOutputs(False, read_splade(folder)) if splade else read_token_outputs(folder)
        classifier = read_classifier(config, folder, transformer, hidden_size) if classifies else None
        late = None
        if multi_vector:
            unknown: list[str] = []
            late = read_late_interaction(folder, whole, settings.own, hidden_size, unknown)
            token_outputs = TokenOutputs(False, None, late.output)
            settings = late.settings(settings, tuple(unknown))
        if classifier is not None:
            modules = SentenceModules(
                transformer, (classifier.pooling,), True, classifier.steps, False, len(classifier.labels)
            )
        elif splade or late:
            # The mean is no answer; executors are compared by it.
            modules = SentenceModules(transformer, (Pooling.MEAN,), True, (), False, hidden_size)
        elif tower:
            modules = read_modules_after(folder, size_of(name, config, "projection_dim"))
        else:
            modules = read_sentence_modules(folder, hidden_size)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from None
    positions = positions_of(config, settings)
    lengths = text_lengths(name, tokenizer_config, settings, positions, max_length)
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
        padding_id=padding_id_of(config) if config.get("model_type") in OFFSET_POSITIONS else None,
        model_type=_family(config),
        tasks=tasks_of(config),
        reason_against_vllm=(
            reason_against_vllm(config) or reason_against_types(config, classifier) or token_outputs.reason_against_vllm
        ),
        unknown=settings.unknown + modules.unknown,
        token_outputs=token_outputs,
        classifier=classifier,
        markers=late.markers if late else (),
    )


def _family(config: Mapping[str, Any]) -> str:
    if is_jina_bert(config):
        return JINA_BERT
    return JINA_V3 if is_jina_v3(config) else str(config.get("model_type", ""))


def _read_static_files(
    name: str, folder: Path, place: Path, is_local: bool, longest: int | None, template: str | None
) -> ModelFiles:
    """place: of the table and the tokenizer. longest, template: of the settings."""
    head = read_table_head(place)
    modules = read_modules_after(folder, head.width)
    settings = read_sentence_settings(folder, place)
    config = read_object(folder / "config.json")
    has_modules = (folder / "modules.json").exists()
    limits = [limit for limit in (head.max_length, longest) if limit and limit > 0]
    length = min([NO_LIMIT, *limits])
    return ModelFiles(
        name=name,
        folder=folder,
        transformer=place,
        is_local=is_local,
        architectures=("StaticEmbedding",),
        is_causal=False,
        hidden_size=head.width,
        dimensions=modules.dimensions,
        # One more than the table has, for the id of a text without tokens.
        vocab_size=head.rows + 1,
        empty_id=head.rows,
        max_length=length,
        lengths={None: length, "query": length, "passage": length},
        pooling=modules.pooling,
        include_prompt=True,
        steps=modules.steps,
        normalize=modules.normalize if has_modules else bool(config.get("normalize")),
        lowercase=False,
        truncate=head.truncate,
        truncate_dim=settings.truncate_dim if (settings.truncate_dim or 0) < modules.dimensions else None,
        tokenizer_options={},
        prompts=settings.prompts,
        default_prompt_name=settings.default_prompt_name,
        instruction_template=template or instruction_template(name, settings.prompts),
        padding_id=None,
        model_type=STATIC,
        reason_against_vllm="it is a table of static embeddings",
        unknown=settings.unknown + modules.unknown,
    )
