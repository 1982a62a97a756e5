"""RoBERTa and its relatives, whose first position is not 0: XLM-R, CamemBERT, MPNet, Longformer, and more."""

from pathlib import Path
from typing import Any

from tritonembed_perf.families import vocabularies
from tritonembed_perf.families.bert import PROMPTS, WIDTH
from tritonembed_perf.families.registry import case
from tritonembed_perf.families.sentence import (
    dense,
    normalize,
    pooling,
    transformer,
    write_model,
    write_sentence_files,
)
from tritonembed_perf.families.writing import ModelParts, edit_json, random_state

FAMILY = "RoBERTa"
POSITIONS = 130
"""Rows of the table of positions. Tokens use all but two of them."""


def roberta_config(**changes: Any) -> dict[str, Any]:
    """config.json of roberta-base, with smaller sizes."""
    config = {
        "architectures": ["RobertaModel"],
        "attention_probs_dropout_prob": 0.1,
        "bos_token_id": 0,
        "classifier_dropout": None,
        "eos_token_id": 2,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": WIDTH,
        "initializer_range": 0.02,
        "intermediate_size": 2 * WIDTH,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": POSITIONS,
        "model_type": "roberta",
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "pad_token_id": 1,
        "position_embedding_type": "absolute",
        "torch_dtype": "float32",
        "transformers_version": "4.30.2",
        "type_vocab_size": 1,
        "use_cache": True,
        "vocab_size": vocabularies.VOCABULARY,
    }
    return {**config, **changes}


def roberta(model_class: str = "RobertaModel", *, unigram: bool = False, **changes: Any) -> ModelParts:
    """A small RoBERTa or relative. unigram: use XLM-R's tokenizer. changes: keys of config.json."""
    config = roberta_config(**{"architectures": [model_class], **changes})
    tokenizer, settings = (vocabularies.xlm_roberta if unigram else vocabularies.roberta)(POSITIONS - 2)
    config["vocab_size"] = tokenizer.get_vocab_size()
    return ModelParts(config, random_state(model_class, config), tokenizer, settings)


def xlm_roberta(model_class: str = "XLMRobertaModel", **changes: Any) -> ModelParts:
    """A small XLM-R."""
    return roberta(model_class, unigram=True, **{"model_type": "xlm-roberta", **changes})


def with_position_ids(model: ModelParts) -> ModelParts:
    """Add the buffer `position_ids`, which old releases saved."""
    import torch

    model.state["embeddings.position_ids"] = torch.arange(POSITIONS).unsqueeze(0)
    return model


@case(FAMILY)
def roberta_mean(folder: Path) -> None:
    write_model(folder, roberta())


@case(FAMILY)
def roberta_full_length(folder: Path) -> None:
    """Texts up to the last position."""
    write_model(folder, roberta(), max_length=POSITIONS - 2)


@case(FAMILY)
def roberta_too_long(folder: Path) -> None:
    """max_seq_length is the number of rows of positions, two too many, as all-distilroberta-v1 once had it."""
    write_model(folder, roberta(), max_length=POSITIONS)


@case(FAMILY)
def roberta_posids(folder: Path) -> None:
    write_model(folder, with_position_ids(roberta()))


@case(FAMILY)
def roberta_maskedlm(folder: Path) -> None:
    """all-distilroberta-v1: config.json names RobertaForMaskedLM, but the weights are the body's alone."""
    model = roberta()
    model.config["architectures"] = ["RobertaForMaskedLM"]
    write_model(folder, model, max_length=POSITIONS - 2)


@case(FAMILY)
def roberta_maskedlm_head(folder: Path) -> None:
    """roberta-base as the hub has it: the body's weights under `roberta.`, and a head."""
    write_model(folder, roberta("RobertaForMaskedLM"))


@case(FAMILY)
def roberta_nomodules(folder: Path) -> None:
    roberta().write(folder)


@case(FAMILY)
def roberta_tf5(folder: Path) -> None:
    model = roberta()
    del model.config["position_embedding_type"]
    write_model(folder, model)


@case("XLM-RoBERTa")
def bge_m3(folder: Path) -> None:
    """bge-m3: weights as `.bin`, CLS pooling, further heads in the folder."""
    import torch

    xlm_roberta().write(folder, "bin")
    write_sentence_files(folder, [transformer(), pooling(WIDTH, "cls"), normalize()])
    generator = torch.Generator().manual_seed(3)
    for name, rows in (("sparse_linear.pt", 1), ("colbert_linear.pt", WIDTH)):
        weight = torch.randn(rows, WIDTH, generator=generator) * 2 / WIDTH**0.5
        torch.save({"weight": weight, "bias": 0.5 * torch.randn(rows, generator=generator)}, folder / name)


@case("XLM-RoBERTa")
def me5(folder: Path) -> None:
    """multilingual-e5: mean pooling; callers add the prompts themselves."""
    write_model(folder, xlm_roberta(), prompts=PROMPTS)


@case("XLM-RoBERTa")
def xlmr_posids(folder: Path) -> None:
    write_model(folder, with_position_ids(xlm_roberta()))


@case("XLM-RoBERTa")
def arctic_l_v2(folder: Path) -> None:
    write_model(folder, xlm_roberta(), "cls", prompts={"query": "query: "})


@case("XLM-RoBERTa")
def xlmr_tf5(folder: Path) -> None:
    """Saved by transformers 5: no `position_embedding_type`."""
    model = xlm_roberta()
    del model.config["position_embedding_type"]
    write_model(folder, model)


@case("XLM-RoBERTa")
def xlmr_maskedlm(folder: Path) -> None:
    write_model(folder, xlm_roberta("XLMRobertaForMaskedLM"))


@case("XLM-RoBERTa")
def xlmr_dense(folder: Path) -> None:
    xlm_roberta().write(folder)
    modules = [transformer(), pooling(WIDTH, "mean"), dense(WIDTH, 32), normalize()]
    write_sentence_files(folder, modules)


@case("XLM-RoBERTa")
def xlmr_xl(folder: Path) -> None:
    write_model(folder, roberta("XLMRobertaXLModel", unigram=True, model_type="xlm-roberta-xl"))


@case("CamemBERT")
def camembert(folder: Path) -> None:
    """sentence-camembert-base."""
    write_model(folder, _camembert())


@case("CamemBERT")
def camembert_posids(folder: Path) -> None:
    write_model(folder, with_position_ids(_camembert()))


@case("CamemBERT")
def camembert_roberta(folder: Path) -> None:
    """config.json names RobertaModel."""
    model = _camembert()
    model.config.update(architectures=["RobertaModel"], model_type="roberta")
    write_model(folder, model)


@case("CamemBERT")
def camembert_nomodules(folder: Path) -> None:
    _camembert().write(folder)


def _camembert() -> ModelParts:
    model = roberta("CamembertModel", unigram=True, model_type="camembert")
    model.tokenizer_config["tokenizer_class"] = "CamembertTokenizer"
    return model


@case("RoBERTa's relatives")
def data2vec_text(folder: Path) -> None:
    write_model(folder, roberta("Data2VecTextModel", model_type="data2vec-text"))


@case("RoBERTa's relatives")
def xmod(folder: Path) -> None:
    languages = {"languages": ["en_XX", "de_DE"], "default_language": "en_XX", "adapter_reduction_factor": 2}
    write_model(folder, roberta("XmodModel", unigram=True, model_type="xmod", ln_before_adapter=True, **languages))


@case("RoBERTa's relatives")
def longformer(folder: Path) -> None:
    """An attention window of 8 tokens on either side."""
    write_model(folder, roberta("LongformerModel", model_type="longformer", attention_window=[16, 16], sep_token_id=2))


@case("RoBERTa's relatives")
def luke(folder: Path) -> None:
    write_model(folder, roberta("LukeModel", model_type="luke", entity_vocab_size=16, entity_emb_size=16))


@case("RoBERTa's relatives")
def ibert(folder: Path) -> None:
    write_model(folder, roberta("IBertModel", model_type="ibert", quant_mode=False, force_dequant="none"))


@case("RoBERTa's relatives")
def roberta_prelayernorm(folder: Path) -> None:
    write_model(folder, roberta("RobertaPreLayerNormModel", model_type="roberta-prelayernorm"))


@case("RoBERTa's relatives")
def mpnet(folder: Path) -> None:
    """all-mpnet-base-v2: config.json names MPNetForMaskedLM, but the weights are the body's alone."""
    model = mpnet_body()
    model.config["architectures"] = ["MPNetForMaskedLM"]
    write_model(folder, model)


@case("RoBERTa's relatives")
def mpnet_model(folder: Path) -> None:
    write_model(folder, mpnet_body())


def mpnet_body() -> ModelParts:
    """MPNet, whose WordPiece has special tokens of its own."""
    model = roberta("MPNetModel", model_type="mpnet", relative_attention_num_buckets=32)
    model.tokenizer_config = {key: value for key, value in model.tokenizer_config.items() if key != "add_prefix_space"}
    model.tokenizer_config["tokenizer_class"] = "PreTrainedTokenizerFast"
    return model


@case("RoBERTa's relatives")
def roberta_lower(folder: Path) -> None:
    """`do_lower_case` with byte-level BPE."""
    write_model(folder, roberta())
    edit_json(folder / "sentence_bert_config.json", do_lower_case=True)
