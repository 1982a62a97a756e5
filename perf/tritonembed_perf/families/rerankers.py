"""Rerankers and classifiers: sentence-transformers' CrossEncoder shows the logits that they have to give."""

from functools import partial
from pathlib import Path
from typing import Any

from tritonembed_perf.families import vocabularies
from tritonembed_perf.families.bert import WIDTH, bert, mean_modules
from tritonembed_perf.families.decoders import decoder
from tritonembed_perf.families.encoders import bert_like, distilbert_model
from tritonembed_perf.families.gte import NEW_CODE, NTK, NTK_NATIVE, gte_hub_model, gte_native_model
from tritonembed_perf.families.modernbert import THETAS, modernbert
from tritonembed_perf.families.registry import case
from tritonembed_perf.families.roberta import mpnet_body, roberta, xlm_roberta
from tritonembed_perf.families.sentence import transformer, write_sentence_files
from tritonembed_perf.families.writing import ModelParts, random_state, renamed

ONE_LABEL = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
THREE_LABELS = {
    "id2label": {"0": "contradiction", "1": "entailment", "2": "neutral"},
    "label2id": {"contradiction": 0, "entailment": 1, "neutral": 2},
}
RERANKERS = "Rerankers and classifiers"


def classifier(model: ModelParts, model_class: str, labels: dict[str, Any] = ONE_LABEL) -> ModelParts:
    """The model with a random head. model_class: of transformers."""
    model.config.update(architectures=[model_class], **labels)
    model.state = random_state(model_class, model.config)
    return model


def _answering(model: ModelParts) -> ModelParts:
    """The model whose vocabulary has the two answers."""
    model.tokenizer.add_tokens(["yes", "no"])
    model.config["vocab_size"] = model.tokenizer.get_vocab_size(with_added_tokens=True)
    model.state = random_state(model.config["architectures"][0], model.config)
    return model


@case(RERANKERS, classifies=True)
def ce_bert(folder: Path) -> None:
    """ms-marco-MiniLM."""
    classifier(bert(), "BertForSequenceClassification").write(folder)


@case(RERANKERS, classifies=True)
def ce_bert_labels(folder: Path) -> None:
    """A classifier of pairs with three labels (NLI)."""
    classifier(bert(), "BertForSequenceClassification", THREE_LABELS).write(folder)


@case(RERANKERS, classifies=True)
def ce_xlmr(folder: Path) -> None:
    """bge-reranker-v2-m3."""
    classifier(xlm_roberta(), "XLMRobertaForSequenceClassification").write(folder)


@case(RERANKERS, classifies=True)
def ce_roberta(folder: Path) -> None:
    """stsb-roberta."""
    classifier(roberta(), "RobertaForSequenceClassification").write(folder)


@case(RERANKERS, classifies=True)
def ce_modernbert(folder: Path) -> None:
    """gte-reranker-modernbert-base: the mean of the tokens."""
    model = modernbert(**THETAS, classifier_pooling="mean")
    classifier(model, "ModernBertForSequenceClassification").write(folder)


@case(RERANKERS, classifies=True)
def ce_modernbert_cls(folder: Path) -> None:
    """The first token, a bias in the head, and ReLU."""
    more: dict[str, Any] = {"classifier_pooling": "cls", "classifier_bias": True, "classifier_activation": "relu"}
    classifier(modernbert(**THETAS, **more), "ModernBertForSequenceClassification").write(folder)


@case(RERANKERS, classifies=True)
def ce_electra(folder: Path) -> None:
    """ms-marco-electra-base."""
    model = bert_like("ElectraModel", model_type="electra", embedding_size=WIDTH)
    classifier(model, "ElectraForSequenceClassification").write(folder)


@case(RERANKERS, classifies=True)
def ce_distilbert(folder: Path) -> None:
    """distilbert-base-uncased-finetuned-sst-2."""
    classifier(distilbert_model(), "DistilBertForSequenceClassification", THREE_LABELS).write(folder)


@case(RERANKERS, classifies=True)
def ce_albert(folder: Path) -> None:
    model = bert_like("AlbertModel", model_type="albert", embedding_size=32, num_hidden_groups=1, inner_group_num=1)
    classifier(model, "AlbertForSequenceClassification").write(folder)


@case(RERANKERS, classifies=True)
def ce_deberta_v3(folder: Path) -> None:
    """mxbai-rerank-v1."""
    more = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False}
    shape = {"max_relative_positions": -1, "position_buckets": 32, "norm_rel_ebd": "layer_norm", "share_att_key": True}
    model = bert_like("DebertaV2Model", model_type="deberta-v2", type_vocab_size=0, **more, **shape)
    classifier(model, "DebertaV2ForSequenceClassification").write(folder)


@case(RERANKERS, classifies=True)
def ce_mpnet(folder: Path) -> None:
    classifier(mpnet_body(), "MPNetForSequenceClassification").write(folder)


def _gte_native() -> ModelParts:
    """With the body of the embedding models: random weights depend on their names."""
    body = gte_native_model(NTK_NATIVE)
    model = classifier(gte_native_model(NTK_NATIVE), "GteForSequenceClassification")
    model.state |= {f"gte.{name}": value for name, value in body.state.items()}
    return model


@case(RERANKERS, classifies=True, reference=lambda folder: _gte_native().write(folder))
def ce_gte(folder: Path) -> None:
    """gte-multilingual-reranker-base: the names of Alibaba-NLP's code."""
    model = gte_hub_model(f"{NEW_CODE}--", "NewForSequenceClassification", NTK, "new.")
    model.config.update(ONE_LABEL)
    head = ("gte.pooler.", "classifier.")
    native = {name: value for name, value in _gte_native().state.items() if name.startswith(head)}
    model.state |= renamed(native, {"^gte": "new"})
    model.write(folder)


@case(RERANKERS, classifies=True)
def ce_llama(folder: Path) -> None:
    """A decoder with a matrix named `score` on its last token."""
    classifier(
        decoder("LlamaModel", "llama", partial(vocabularies.llama, end=False)), "LlamaForSequenceClassification"
    ).write(folder)


@case(RERANKERS, classifies=True)
def ce_qwen3_reranker(folder: Path) -> None:
    """Qwen3-Reranker: a causal model that generates yes or no."""
    _answering(decoder("Qwen3ForCausalLM", "qwen3")).write(folder)


@case(RERANKERS, classifies=True)
def ce_qwen3_converted(folder: Path) -> None:
    """Qwen3-Reranker with one label instead of the two tokens."""
    classifier(decoder("Qwen3Model", "qwen3"), "Qwen3ForSequenceClassification").write(folder)


@case(RERANKERS, must_refuse=True)
def chat_qwen3(folder: Path) -> None:
    """A chat model: neither its files nor its name say that it reranks."""
    decoder("Qwen3ForCausalLM", "qwen3").write(folder)


@case(RERANKERS, classifies=True)
def ce_st6(folder: Path) -> None:
    """A CrossEncoder as sentence-transformers 6 saves it."""
    classifier(bert(), "BertForSequenceClassification").write(folder)
    output = {"text": {"method": "forward", "method_output_name": "logits"}}
    settings = {
        "transformer_task": "sequence-classification",
        "modality_config": output,
        "module_output_name": "scores",
    }
    first = transformer("sentence_transformers.base.modules.transformer.Transformer")
    config = {"model_type": "CrossEncoder", "activation_fn": "torch.nn.modules.activation.Sigmoid"}
    write_sentence_files(folder, [first], settings=settings, config=config)


@case(RERANKERS)
def embedder_with_classifier(folder: Path) -> None:
    """An embedding model that is saved with the head of a classifier, which does not matter."""
    classifier(bert(), "BertForSequenceClassification").write(folder)
    write_sentence_files(folder, mean_modules())
