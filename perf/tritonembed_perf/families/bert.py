"""BERT: poolings, files as old and new releases write them, number types."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tritonembed_perf.families import vocabularies
from tritonembed_perf.families.registry import case
from tritonembed_perf.families.sentence import (
    MAX_LENGTH,
    Module,
    dense,
    normalize,
    pooling,
    transformer,
    write_sentence_files,
)
from tritonembed_perf.families.writing import ModelParts, edit_json, random_state, write_json

WIDTH = 64
PROMPTS = {"query": "query: ", "passage": "passage: "}
QUERY = {"query": "Represent this sentence for searching relevant passages: "}

FAMILY = "BERT"


def bert_config(**changes: Any) -> dict[str, Any]:
    """config.json of bert-base-uncased, with smaller sizes."""
    config = {
        "architectures": ["BertModel"],
        "attention_probs_dropout_prob": 0.1,
        "classifier_dropout": None,
        "gradient_checkpointing": False,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": WIDTH,
        "initializer_range": 0.02,
        "intermediate_size": 2 * WIDTH,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 128,
        "model_type": "bert",
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "torch_dtype": "float32",
        "transformers_version": "4.30.2",
        "type_vocab_size": 2,
        "use_cache": True,
        "vocab_size": vocabularies.BERT_VOCABULARY,
    }
    return {**config, **changes}


def bert(model_class: str = "BertModel", **changes: Any) -> ModelParts:
    """A small BERT. changes: keys of config.json."""
    config = bert_config(**changes)
    tokenizer, settings = vocabularies.bert(config["max_position_embeddings"])
    return ModelParts(config, random_state(model_class, config), tokenizer, settings)


def write_bert(folder: Path, *modes: str, more: Mapping[str, Any] | None = None, **sentence: Any) -> None:
    """Write a whole folder. modes: poolings, "mean" by default. more: keys of the pooling's file. sentence: for
    write_sentence_files.
    """
    bert().write(folder)
    modules = [transformer(), pooling(WIDTH, *(modes or ("mean",)), **(more or {})), normalize()]
    write_sentence_files(folder, sentence.pop("modules", modules), **sentence)


def mean_modules(*after: Module) -> list[Module]:
    """Transformer, mean pooling and the given modules."""
    return [transformer(), pooling(WIDTH, "mean"), *after]


@case(FAMILY)
def bert_cls(folder: Path) -> None:
    write_bert(folder, "cls", prompts=QUERY)


@case(FAMILY)
def bert_mean(folder: Path) -> None:
    write_bert(folder, prompts=PROMPTS)


@case(FAMILY)
def bert_max(folder: Path) -> None:
    write_bert(folder, "max")


@case(FAMILY)
def bert_sqrtlen(folder: Path) -> None:
    write_bert(folder, "mean_sqrt_len_tokens", modules=[transformer(), pooling(WIDTH, "mean_sqrt_len_tokens")])


@case(FAMILY)
def bert_wmean(folder: Path) -> None:
    write_bert(folder, "weightedmean", prompts=PROMPTS)


@case(FAMILY)
def bert_lasttoken(folder: Path) -> None:
    write_bert(folder, "lasttoken")


@case(FAMILY)
def bert_clsmean(folder: Path) -> None:
    write_bert(folder, "cls", "mean")


@case(FAMILY)
def bert_clsmaxmean_dense(folder: Path) -> None:
    write_bert(folder, modules=[transformer(), pooling(WIDTH, "cls", "max", "mean"), dense(3 * WIDTH, 48), normalize()])


@case(FAMILY)
def bert_clsmean_list(folder: Path) -> None:
    """Two poolings as a list, as sentence-transformers 6 saves them."""
    write_bert(folder, more={"pooling_mode": ["cls", "mean"]})


@case(FAMILY)
def bert_noinclude(folder: Path) -> None:
    write_bert(folder, more={"include_prompt": False})


@case(FAMILY)
def bert_noinclude_prompts(folder: Path) -> None:
    """The pooling leaves out the prompts, as in Instructor and NV-Embed."""
    write_bert(folder, more={"include_prompt": False}, prompts=QUERY)


@case(FAMILY)
def bert_noinclude_wmean(folder: Path) -> None:
    write_bert(folder, "weightedmean", more={"include_prompt": False}, prompts=PROMPTS)


@case(FAMILY)
def bert_no_pooling_folder(folder: Path) -> None:
    """A CLS model without its folder 1_Pooling. sentence-transformers has no default for it."""
    write_bert(folder, "cls")
    (folder / "1_Pooling" / "config.json").unlink()
    (folder / "1_Pooling").rmdir()


@case(FAMILY)
def bert_empty_pooling(folder: Path) -> None:
    write_bert(folder, "cls")
    write_json(folder / "1_Pooling" / "config.json", {})


@case(FAMILY)
def bert_pooling_width_only(folder: Path) -> None:
    """No pooling mode: the default is the mean."""
    write_bert(folder, "cls")
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": WIDTH})


@case(FAMILY)
def bert_not_normalized(folder: Path) -> None:
    write_bert(folder, modules=mean_modules())


@case(FAMILY)
def bert_nomodules(folder: Path) -> None:
    bert().write(folder)


@case(FAMILY)
def bert_gelu_new(folder: Path) -> None:
    bert(hidden_act="gelu_new").write(folder)
    write_sentence_files(folder, mean_modules(normalize()))


@case(FAMILY)
def bert_relu(folder: Path) -> None:
    bert(hidden_act="relu").write(folder)
    write_sentence_files(folder, mean_modules(normalize()))


@case(FAMILY)
def bert_eps(folder: Path) -> None:
    """Another epsilon of LayerNorm, as in MiniLM's relatives."""
    bert(layer_norm_eps=0.05).write(folder)
    write_sentence_files(folder, mean_modules(normalize()))


@case(FAMILY, must_refuse=True)
def bert_relpos(folder: Path) -> None:
    """Relative positions. transformers 5 drops them, so its vectors are not those of the trained model."""
    bert(position_embedding_type="relative_key").write(folder)
    write_sentence_files(folder, mean_modules(normalize()))


@case(FAMILY)
def bert_decoder(folder: Path) -> None:
    """`is_decoder`: a token attends only to itself and the tokens before it."""
    bert(is_decoder=True).write(folder)
    write_sentence_files(folder, mean_modules(normalize()))


@case(FAMILY, must_refuse=True)
def bert_missing_weight(folder: Path) -> None:
    """One weight is missing. transformers replaces it with a random one and only logs that."""
    model = bert()
    del model.state["encoder.layer.1.output.dense.weight"]
    model.write(folder)
    write_sentence_files(folder, mean_modules(normalize()))


@case(FAMILY)
def bert_fp16(folder: Path) -> None:
    _in_16_bits(folder, "float16")


@case(FAMILY)
def bert_bf16(folder: Path) -> None:
    _in_16_bits(folder, "bfloat16")


def _in_16_bits(folder: Path, dtype: str) -> None:
    import torch

    model = bert(torch_dtype=dtype)
    model.state = {name: tensor.to(getattr(torch, dtype)) for name, tensor in model.state.items()}
    model.write(folder)
    write_sentence_files(folder, mean_modules(normalize()))


@case(FAMILY)
def bert_sharded(folder: Path) -> None:
    bert().write(folder, "sharded")
    write_sentence_files(folder, mean_modules(normalize()))


@case(FAMILY)
def bert_bin(folder: Path) -> None:
    bert().write(folder, "bin")
    write_sentence_files(folder, mean_modules(normalize()))


@case(FAMILY)
def bert_tf5(folder: Path) -> None:
    """Saved by transformers 5: `dtype`, no `position_embedding_type`."""
    bert().write(folder)
    edit_json(
        folder / "config.json",
        dtype="float32",
        torch_dtype=...,
        position_embedding_type=...,
        gradient_checkpointing=...,
        transformers_version="5.0.0",
        is_decoder=False,
        add_cross_attention=False,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=True,
    )
    write_sentence_files(folder, mean_modules(normalize()), max_length=MAX_LENGTH)
