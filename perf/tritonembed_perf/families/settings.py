"""Settings: lengths, prompts, arguments of the tokenizer, and outputs other than the last layer's."""

from pathlib import Path
from typing import Any

from tokenizers import normalizers

from tritonembed_perf.families.bert import PROMPTS, bert, mean_modules, write_bert
from tritonembed_perf.families.registry import case
from tritonembed_perf.families.sentence import normalize, write_sentence_files
from tritonembed_perf.families.writing import ModelParts, edit_json

FAMILY = "Settings"
TEXT = {"method": "forward", "method_output_name": "last_hidden_state"}
NEW_STYLE: dict[str, Any] = {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}


def write_settings(folder: Path, max_length: int | None = 64, **settings: Any) -> None:
    """Write BERT with mean pooling. settings: keys of sentence_bert_config.json."""
    write_bert(folder, settings=settings, max_length=max_length)


@case(FAMILY)
def bert_longer_seq(folder: Path) -> None:
    """max_seq_length exceeds the positions: sentence-transformers fails on long texts."""
    write_settings(folder, max_length=512)


@case(FAMILY)
def bert_noseq(folder: Path) -> None:
    """No sentence_bert_config.json: the tokenizer's limit holds."""
    write_settings(folder, max_length=None)
    edit_json(folder / "tokenizer_config.json", model_max_length=64)


@case(FAMILY)
def bert_nolimit(folder: Path) -> None:
    """No limit is set: the number of positions is the limit."""
    write_settings(folder, max_length=None)
    edit_json(folder / "tokenizer_config.json", model_max_length=...)


@case(FAMILY)
def bert_null_seq(folder: Path) -> None:
    """`max_seq_length` is null, as if saved without a limit."""
    write_settings(folder, max_length=None, max_seq_length=None, do_lower_case=False)


@case(FAMILY)
def bert_tokargs_len(folder: Path) -> None:
    write_settings(
        folder, max_length=None, processor_kwargs={"model_max_length": 32}, modality_config={"text": TEXT}, **NEW_STYLE
    )


@case(FAMILY)
def bert_tokargs_both(folder: Path) -> None:
    """Two limits: the one in the tokenizer's arguments holds."""
    write_settings(folder, tokenizer_args={"model_max_length": 24})


@case(FAMILY)
def bert_tokargs_case(folder: Path) -> None:
    """The tokenizer's arguments turn off lowercasing."""
    write_settings(folder, tokenizer_args={"do_lower_case": False})


@case(FAMILY)
def bert_prockw_case(folder: Path) -> None:
    write_settings(folder, processor_kwargs={"do_lower_case": False})


@case(FAMILY)
def bert_tokargs_left(folder: Path) -> None:
    """The tokenizer's arguments cut long texts at the start."""
    write_settings(folder, tokenizer_args={"truncation_side": "left"})


@case(FAMILY)
def bert_prockw(folder: Path) -> None:
    write_settings(folder, processing_kwargs={"text": {"max_length": 32}})


@case(FAMILY)
def bert_prockw_short(folder: Path) -> None:
    write_settings(folder, processing_kwargs={"text": {"max_length": 6}})


@case(FAMILY)
def bert_prockw_longer(folder: Path) -> None:
    """A maximum above max_seq_length, within the positions: it holds."""
    write_settings(folder, processing_kwargs={"text": {"max_length": 100}})


@case(FAMILY)
def bert_no_special_tokens(folder: Path) -> None:
    write_settings(folder, processing_kwargs={"text": {"add_special_tokens": False}})


@case(FAMILY)
def bert_padding(folder: Path) -> None:
    """Texts are padded to the maximum. Padding is masked, so the vectors do not change."""
    write_settings(folder, processing_kwargs={"text": {"padding": "max_length"}})


@case(FAMILY)
def bert_no_truncation(folder: Path) -> None:
    """No truncation: long texts exceed the positions."""
    write_settings(folder, processing_kwargs={"text": {"truncation": False}})


@case(FAMILY)
def bert_common_kwargs(folder: Path) -> None:
    write_settings(folder, processing_kwargs={"common": {"add_special_tokens": False}})


@case(FAMILY)
def bert_doclen(folder: Path) -> None:
    """Queries and documents have maxima of their own."""
    write_settings(folder, query_length=16, document_length=32)


@case(FAMILY)
def bert_querylen_longer(folder: Path) -> None:
    """A query may be longer than a text without an input type."""
    write_settings(folder, max_length=24, query_length=100)


@case(FAMILY)
def bert_config_args(folder: Path) -> None:
    """Arguments change config.json at load to one layer."""
    write_settings(folder, config_args={"num_hidden_layers": 1})


@case(FAMILY)
def bert_model_args(folder: Path) -> None:
    write_settings(folder, model_args={"attn_implementation": "eager"})


@case(FAMILY)
def bert_hiddenstates(folder: Path) -> None:
    """The output of the last layer but one."""
    text = {"method": "forward", "method_output_name": ["hidden_states", -2]}
    write_settings(folder, modality_config={"text": text}, **NEW_STYLE)


@case(FAMILY)
def bert_hiddenstates_last(folder: Path) -> None:
    """The output of the last layer, under its other name."""
    text = {"method": "forward", "method_output_name": ["hidden_states", -1]}
    write_settings(folder, modality_config={"text": text}, **NEW_STYLE)


@case(FAMILY)
def bert_pooler_output(folder: Path) -> None:
    """The output of BERT's pooler, which is already one vector per text."""
    text = {"method": "forward", "method_output_name": "pooler_output"}
    settings = {"modality_config": {"text": text}, **NEW_STYLE, "module_output_name": "sentence_embedding"}
    bert().write(folder)
    write_sentence_files(folder, [mean_modules()[0], normalize()], settings=settings)


@case(FAMILY)
def bert_truncleft(folder: Path) -> None:
    """A long text keeps its end."""
    write_bert(folder)
    edit_json(folder / "tokenizer_config.json", truncation_side="left")


@case(FAMILY)
def bert_truncleft_prompts(folder: Path) -> None:
    """A long text keeps its end and loses its prompt."""
    write_bert(folder, prompts=PROMPTS)
    edit_json(folder / "tokenizer_config.json", truncation_side="left")


@case(FAMILY)
def bert_st6_truncdim(folder: Path) -> None:
    """Vectors are cut to 32 dimensions after the last module, so their length is not 1."""
    write_bert(folder, config={"truncate_dim": 32})


@case(FAMILY)
def bert_default_prompt(folder: Path) -> None:
    """Prompts for query, document and passage, and a default prompt."""
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
    """`do_lower_case` with a tokenizer that keeps case."""
    _write_cased(folder, do_lower_case=True)


def _write_cased(folder: Path, **settings: Any) -> None:
    model = bert()
    keep_case(model)
    model.write(folder)
    write_sentence_files(folder, mean_modules(normalize()), settings=settings)


def keep_case(model: ModelParts) -> None:
    """Make a BERT tokenizer keep case, as bert-base-cased's does."""
    model.tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    model.tokenizer_config.update(do_lower_case=False)
