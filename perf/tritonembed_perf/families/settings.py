"""Settings beside the weights: lengths, prompts, arguments of the tokenizer, other outputs than the last layer."""

from pathlib import Path
from typing import Any

from tokenizers import normalizers

from tritonembed_perf.families.bert import PROMPTS, bert, mean_modules, write_bert
from tritonembed_perf.families.registry import case
from tritonembed_perf.families.sentence import normalize, write_sentence_files
from tritonembed_perf.families.writing import Model, edit_json

FAMILY = "Settings"
TEXT = {"method": "forward", "method_output_name": "last_hidden_state"}
NEW_STYLE: dict[str, Any] = {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}


def write_settings(folder: Path, max_length: int | None = 64, **settings: Any) -> None:
    """BERT, mean pooling; settings: of sentence_bert_config.json."""
    write_bert(folder, settings=settings, max_length=max_length)


@case(FAMILY)
def bert_longer_seq(folder: Path) -> None:
    """max_seq_length over the positions: sentence-transformers fails on long texts."""
    write_settings(folder, max_length=512)


@case(FAMILY)
def bert_noseq(folder: Path) -> None:
    """No sentence_bert_config.json: the tokenizer's limit."""
    write_settings(folder, max_length=None)
    edit_json(folder / "tokenizer_config.json", model_max_length=64)


@case(FAMILY)
def bert_nolimit(folder: Path) -> None:
    """No limit anywhere: the positions."""
    write_settings(folder, max_length=None)
    edit_json(folder / "tokenizer_config.json", model_max_length=...)


@case(FAMILY)
def bert_null_seq(folder: Path) -> None:
    """`max_seq_length` null, as saved without a limit."""
    write_settings(folder, max_length=None, max_seq_length=None, do_lower_case=False)


@case(FAMILY)
def bert_tokargs_len(folder: Path) -> None:
    write_settings(
        folder, max_length=None, processor_kwargs={"model_max_length": 32}, modality_config={"text": TEXT}, **NEW_STYLE
    )


@case(FAMILY)
def bert_tokargs_both(folder: Path) -> None:
    """Two limits: the tokenizer's arguments win."""
    write_settings(folder, tokenizer_args={"model_max_length": 24})


@case(FAMILY)
def bert_tokargs_case(folder: Path) -> None:
    """The tokenizer is told not to lowercase."""
    write_settings(folder, tokenizer_args={"do_lower_case": False})


@case(FAMILY)
def bert_prockw_case(folder: Path) -> None:
    write_settings(folder, processor_kwargs={"do_lower_case": False})


@case(FAMILY)
def bert_tokargs_left(folder: Path) -> None:
    """The tokenizer is told to cut at the start."""
    write_settings(folder, tokenizer_args={"truncation_side": "left"})


@case(FAMILY)
def bert_prockw(folder: Path) -> None:
    write_settings(folder, processing_kwargs={"text": {"max_length": 32}})


@case(FAMILY)
def bert_prockw_short(folder: Path) -> None:
    write_settings(folder, processing_kwargs={"text": {"max_length": 6}})


@case(FAMILY)
def bert_prockw_longer(folder: Path) -> None:
    """Over max_seq_length, within the positions: it wins."""
    write_settings(folder, processing_kwargs={"text": {"max_length": 100}})


@case(FAMILY)
def bert_no_special_tokens(folder: Path) -> None:
    write_settings(folder, processing_kwargs={"text": {"add_special_tokens": False}})


@case(FAMILY)
def bert_padding(folder: Path) -> None:
    """Padded to the maximum; padding is masked, so that nothing changes."""
    write_settings(folder, processing_kwargs={"text": {"padding": "max_length"}})


@case(FAMILY)
def bert_no_truncation(folder: Path) -> None:
    """Long texts are over the positions."""
    write_settings(folder, processing_kwargs={"text": {"truncation": False}})


@case(FAMILY)
def bert_common_kwargs(folder: Path) -> None:
    write_settings(folder, processing_kwargs={"common": {"add_special_tokens": False}})


@case(FAMILY)
def bert_doclen(folder: Path) -> None:
    """Other maxima for queries and documents."""
    write_settings(folder, query_length=16, document_length=32)


@case(FAMILY)
def bert_querylen_longer(folder: Path) -> None:
    """A query may be longer than a text without a type."""
    write_settings(folder, max_length=24, query_length=100)


@case(FAMILY)
def bert_config_args(folder: Path) -> None:
    """The configuration is changed when it is loaded: one layer."""
    write_settings(folder, config_args={"num_hidden_layers": 1})


@case(FAMILY)
def bert_model_args(folder: Path) -> None:
    write_settings(folder, model_args={"attn_implementation": "eager"})


@case(FAMILY)
def bert_hiddenstates(folder: Path) -> None:
    """The last layer but one."""
    text = {"method": "forward", "method_output_name": ["hidden_states", -2]}
    write_settings(folder, modality_config={"text": text}, **NEW_STYLE)


@case(FAMILY)
def bert_hiddenstates_last(folder: Path) -> None:
    """The last layer by its other name."""
    text = {"method": "forward", "method_output_name": ["hidden_states", -1]}
    write_settings(folder, modality_config={"text": text}, **NEW_STYLE)


@case(FAMILY)
def bert_pooler_output(folder: Path) -> None:
    """BERT's own pooler: already one vector per text."""
    text = {"method": "forward", "method_output_name": "pooler_output"}
    settings = {"modality_config": {"text": text}, **NEW_STYLE, "module_output_name": "sentence_embedding"}
    bert().write(folder)
    write_sentence_files(folder, [mean_modules()[0], normalize()], settings=settings)


@case(FAMILY)
def bert_truncleft(folder: Path) -> None:
    """Of a long text the end is kept."""
    write_bert(folder)
    edit_json(folder / "tokenizer_config.json", truncation_side="left")


@case(FAMILY)
def bert_truncleft_prompts(folder: Path) -> None:
    """A long text loses its prompt."""
    write_bert(folder, prompts=PROMPTS)
    edit_json(folder / "tokenizer_config.json", truncation_side="left")


@case(FAMILY)
def bert_st6_truncdim(folder: Path) -> None:
    """Cut to 32 dimensions after the last module: not of length 1 any more."""
    write_bert(folder, config={"truncate_dim": 32})


@case(FAMILY)
def bert_default_prompt(folder: Path) -> None:
    """Prompts query, document and passage at once, and a default."""
    prompts = {"query": "query: ", "document": "document: ", "passage": "a passage: "}
    write_bert(folder, prompts=prompts, config={"default_prompt_name": "query"})


@case(FAMILY)
def bert_corpus_prompt(folder: Path) -> None:
    write_bert(folder, prompts={"query": "query: ", "corpus": "corpus: "})


@case(FAMILY)
def bert_document_prompt(folder: Path) -> None:
    write_bert(folder, prompts={"query": "query: ", "document": "passage: "})


@case(FAMILY)
def bert_null_prompt(folder: Path) -> None:
    write_bert(folder, config={"prompts": {"query": None, "document": None}, "default_prompt_name": None})


@case(FAMILY)
def bert_unknown_default_prompt(folder: Path) -> None:
    write_bert(folder, prompts=PROMPTS, config={"default_prompt_name": "retrieval"})


@case(FAMILY)
def bert_cased(folder: Path) -> None:
    _write_cased(folder)


@case(FAMILY)
def bert_cased_lower(folder: Path) -> None:
    """`do_lower_case` over a tokenizer that keeps case."""
    _write_cased(folder, do_lower_case=True)


def _write_cased(folder: Path, **settings: Any) -> None:
    model = bert()
    keep_case(model)
    model.write(folder)
    write_sentence_files(folder, mean_modules(normalize()), settings=settings)


def keep_case(model: Model) -> None:
    """Change a BERT tokenizer to one that keeps case, as bert-base-cased has it."""
    model.tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    model.tokenizer_config.update(do_lower_case=False)
