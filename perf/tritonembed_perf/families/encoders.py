"""Older encoders: DistilBERT, ELECTRA, ALBERT, DeBERTa, T5, and BERT with another vocabulary."""

from pathlib import Path
from typing import Any

from tokenizers import processors

from tritonembed_perf.families import vocabularies
from tritonembed_perf.families.bert import QUERY, WIDTH, bert_config
from tritonembed_perf.families.registry import case
from tritonembed_perf.families.sentence import (
    dense,
    normalize,
    pooling,
    transformer,
    write_model,
    write_sentence_files,
)
from tritonembed_perf.families.settings import keep_case
from tritonembed_perf.families.writing import ModelParts, random_state

IDENTITY = "torch.nn.modules.linear.Identity"


def bert_like(model_class: str, **changes: Any) -> ModelParts:
    """A relative of BERT with BERT's tokenizer. changes: keys of BERT's config.json."""
    config = bert_config(architectures=[model_class], **changes)
    tokenizer, settings = vocabularies.bert(config["max_position_embeddings"])
    return ModelParts(config, random_state(model_class, config), tokenizer, settings)


@case("BERT, other vocabularies")
def para_multi_minilm(folder: Path) -> None:
    """paraphrase-multilingual-MiniLM-L12-v2: BERT with XLM-R's tokenizer."""
    tokenizer, settings = vocabularies.xlm_roberta(128)
    config = bert_config(vocab_size=tokenizer.get_vocab_size(), pad_token_id=0)
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_model(folder, ModelParts(config, random_state("BertModel", config), tokenizer, settings))


@case("BERT, other vocabularies")
def bert_bpe(folder: Path) -> None:
    """BERT with byte-level BPE."""
    tokenizer, settings = vocabularies.roberta(128)
    config = bert_config(vocab_size=tokenizer.get_vocab_size(), pad_token_id=1)
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_model(folder, ModelParts(config, random_state("BertModel", config), tokenizer, settings))


@case("BERT's relatives")
def ernie(folder: Path) -> None:
    """ERNIE 2 and 3: BERT's weights under another name."""
    write_model(folder, bert_like("ErnieModel", model_type="ernie", use_task_id=False, task_type_vocab_size=3), "cls")


@case("BERT's relatives")
def ernie_tasks(folder: Path) -> None:
    """ERNIE with a table of tasks. Its first row is added to every token."""
    write_model(folder, bert_like("ErnieModel", model_type="ernie", use_task_id=True, task_type_vocab_size=3), "cls")


@case("BERT's relatives")
def megatron_bert(folder: Path) -> None:
    write_model(folder, bert_like("MegatronBertModel", model_type="megatron-bert"))


@case("BERT's relatives")
def roformer(folder: Path) -> None:
    write_model(folder, bert_like("RoFormerModel", model_type="roformer", embedding_size=WIDTH, rotary_value=False))


@case("BERT's relatives")
def mobilebert(folder: Path) -> None:
    shape = {"embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32, "trigram_input": True}
    write_model(folder, bert_like("MobileBertModel", model_type="mobilebert", **shape))


def distilbert_model(model_class: str = "DistilBertModel", *, cased: bool = False) -> ModelParts:
    """A small DistilBERT."""
    config = {
        "activation": "gelu",
        "architectures": [model_class],
        "attention_dropout": 0.1,
        "dim": WIDTH,
        "dropout": 0.1,
        "hidden_dim": 2 * WIDTH,
        "initializer_range": 0.02,
        "max_position_embeddings": 128,
        "model_type": "distilbert",
        "n_heads": 2,
        "n_layers": 2,
        "pad_token_id": 0,
        "qa_dropout": 0.1,
        "seq_classif_dropout": 0.2,
        "sinusoidal_pos_embds": False,
        "tie_weights_": True,
        "torch_dtype": "float32",
        "transformers_version": "4.30.2",
        "vocab_size": vocabularies.BERT_VOCABULARY,
    }
    tokenizer, settings = vocabularies.bert(128)
    model = ModelParts(
        config, random_state(model_class, config), tokenizer, {**settings, "tokenizer_class": "DistilBertTokenizer"}
    )
    if cased:
        keep_case(model)
    return model


@case("DistilBERT")
def distilbert(folder: Path) -> None:
    """multi-qa-distilbert-cos-v1."""
    write_model(folder, distilbert_model())


@case("DistilBERT")
def distilbert_maskedlm(folder: Path) -> None:
    """config.json names DistilBertForMaskedLM, but the weights are the body's alone."""
    model = distilbert_model()
    model.config["architectures"] = ["DistilBertForMaskedLM"]
    write_model(folder, model)


@case("DistilBERT")
def distilbert_maskedlm_head(folder: Path) -> None:
    write_model(folder, distilbert_model("DistilBertForMaskedLM"))


@case("DistilBERT")
def distilbert_dot(folder: Path) -> None:
    """msmarco-distilbert-dot: CLS, not normalised."""
    distilbert_model().write(folder)
    write_sentence_files(folder, [transformer(), pooling(WIDTH, "cls")])


@case("DistilBERT")
def distiluse(folder: Path) -> None:
    """distiluse-base-multilingual-cased: cased, Dense with Tanh."""
    distilbert_model(cased=True).write(folder)
    write_sentence_files(folder, [transformer(), pooling(WIDTH, "mean"), dense(WIDTH, 48)])


@case("DistilBERT")
def clip_multilingual(folder: Path) -> None:
    """clip-ViT-B-32-multilingual-v1: Dense without bias or activation."""
    distilbert_model(cased=True).write(folder)
    modules = [transformer(), pooling(WIDTH, "mean"), dense(WIDTH, 48, IDENTITY, bias=False)]
    write_sentence_files(folder, modules)


def _electra(model_class: str = "ElectraModel", embedding: int = 32) -> ModelParts:
    changes = {"embedding_size": embedding, "summary_type": "first", "summary_use_proj": True}
    return bert_like(model_class, model_type="electra", **changes)


@case("ELECTRA")
def electra_same(folder: Path) -> None:
    """ELECTRA whose embeddings are as wide as the layers."""
    write_model(folder, _electra(embedding=WIDTH))


@case("ELECTRA")
def electra(folder: Path) -> None:
    """ELECTRA small: embeddings are narrower than the layers, and projected."""
    write_model(folder, _electra())


@case("ELECTRA")
def electra_posids(folder: Path) -> None:
    import torch

    model = _electra()
    model.state["embeddings.position_ids"] = torch.arange(128).unsqueeze(0)
    write_model(folder, model)


@case("ELECTRA")
def electra_disc(folder: Path) -> None:
    """google/electra-small-discriminator: weights under `electra.`, and a head."""
    write_model(folder, _electra("ElectraForPreTraining"))


def _albert(**changes: Any) -> ModelParts:
    more = {"embedding_size": 32, "num_hidden_groups": 1, "inner_group_num": 1, "classifier_dropout_prob": 0.1}
    model = bert_like("AlbertModel", model_type="albert", hidden_act="gelu_new", **{**more, **changes})
    model.tokenizer_config["tokenizer_class"] = "PreTrainedTokenizerFast"
    return model


@case("ALBERT")
def albert(folder: Path) -> None:
    """paraphrase-albert-small-v2: one layer, used twice."""
    write_model(folder, _albert())


@case("ALBERT")
def albert_two_groups(folder: Path) -> None:
    write_model(folder, _albert(num_hidden_groups=2))


def _deberta_v2(model_class: str = "DebertaV2Model", **changes: Any) -> ModelParts:
    more: dict[str, Any] = {
        "relative_attention": True,
        "position_buckets": 16,
        "max_relative_positions": -1,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": "p2c|c2p",
        "position_biased_input": False,
        "type_vocab_size": 0,
        "layer_norm_eps": 1e-7,
    }
    model = bert_like(model_class, model_type="deberta-v2", **{**more, **changes})
    model.tokenizer_config["tokenizer_class"] = "PreTrainedTokenizerFast"
    return model


@case("DeBERTa")
def deberta_v3(folder: Path) -> None:
    write_model(folder, _deberta_v2())


@case("DeBERTa")
def deberta_v2_conv(folder: Path) -> None:
    """DeBERTa-v2 xlarge: a convolution next to the first layer."""
    write_model(folder, _deberta_v2(conv_kernel_size=3, conv_act="gelu"))


@case("DeBERTa")
def deberta_v1(folder: Path) -> None:
    more = {"relative_attention": True, "max_relative_positions": 32, "pos_att_type": "c2p|p2c", "type_vocab_size": 0}
    model = bert_like("DebertaModel", model_type="deberta", position_biased_input=False, **more)
    model.tokenizer_config["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_model(folder, model)


def _t5(**changes: Any) -> ModelParts:
    config = {
        "architectures": ["T5EncoderModel"],
        "d_ff": 2 * WIDTH,
        "d_kv": 32,
        "d_model": WIDTH,
        "decoder_start_token_id": 0,
        "dropout_rate": 0.1,
        "eos_token_id": 2,
        "feed_forward_proj": "relu",
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "layer_norm_epsilon": 1e-6,
        "model_type": "t5",
        "n_positions": 512,
        "num_heads": 2,
        "num_layers": 2,
        "pad_token_id": 1,
        "relative_attention_max_distance": 32,
        "relative_attention_num_buckets": 16,
        "torch_dtype": "float32",
        "transformers_version": "4.30.2",
        "vocab_size": vocabularies.VOCABULARY,
        **changes,
    }
    tokenizer, settings = vocabularies.xlm_roberta(512)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    config["vocab_size"] = tokenizer.get_vocab_size()
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    return ModelParts(config, random_state("T5EncoderModel", config), tokenizer, settings)


@case("T5")
def sentence_t5(folder: Path) -> None:
    """sentence-t5 and gtr-t5: mean, Dense without bias, normalised."""
    _t5().write(folder)
    modules = [transformer(), pooling(WIDTH, "mean"), dense(WIDTH, 48, IDENTITY, bias=False), normalize()]
    write_sentence_files(folder, modules)


@case("T5")
def instructor(folder: Path) -> None:
    """Instructor: the pooling leaves out the prompt."""
    _t5().write(folder)
    first = pooling(WIDTH, "mean", include_prompt=False)
    modules = [transformer(), first, dense(WIDTH, 48, IDENTITY, bias=False), normalize()]
    write_sentence_files(folder, modules, prompts=QUERY)


@case("T5")
def t5_nomodules(folder: Path) -> None:
    """An encoder without modules.json."""
    _t5(is_encoder_decoder=False).write(folder)
