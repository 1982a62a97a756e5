"""Folders of rerankers and classifiers: their labels, activation and head, and which are refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from tritonembed_engine.errors import ModelError
from tritonembed_engine.model.classifier import QWEN3_RERANKER, Activation, Classifier
from tritonembed_engine.model.files import read_model_files
from tritonembed_engine.model.modules import Pooling
from tritonembed_perf.families import rerankers


def write(folder: Path, case: str, **changes: Any) -> Path:
    """A case's folder. changes: of its config.json; None removes a key."""
    folder = folder / case
    folder.mkdir()
    getattr(rerankers, case)(folder)
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def read(folder: Path) -> Classifier:
    found = read_model_files(str(folder)).classifier
    assert found is not None
    return found


def test_a_reranker_has_one_label_and_a_sigmoid(tmp_path: Path) -> None:
    files = read_model_files(str(write(tmp_path, "ce_bert")))
    assert files.classifier is not None
    assert files.classifier.labels == ("LABEL_0",)
    assert files.classifier.activation is Activation.SIGMOID
    assert files.dimensions == 1
    assert files.pooling == (Pooling.CLS,)
    assert not files.normalize
    assert files.has_token_types


def test_labels_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = {str(number): f"label {number}" for number in reversed(range(11))}
    found = read(write(tmp_path, "ce_bert", id2label=names))
    assert found.labels == tuple(f"label {number}" for number in range(11))
    assert found.activation is Activation.SOFTMAX


@pytest.mark.parametrize(
    ("changes", "activation"),
    [
        ({"problem_type": "multi_label_classification"}, Activation.SIGMOID),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, Activation.NONE),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, Activation.NONE),
    ],
)
def test_the_activation_is_that_of_the_files(tmp_path: Path, changes: Any, activation: Activation) -> None:
    assert read(write(tmp_path, "ce_bert_labels", **changes)).activation is activation


def test_a_folder_of_sentence_transformers_6_is_read(tmp_path: Path) -> None:
    assert read(write(tmp_path, "ce_st6")).activation is Activation.SIGMOID


def test_only_berts_relatives_mark_the_second_text(tmp_path: Path) -> None:
    assert not read_model_files(str(write(tmp_path, "ce_xlmr"))).has_token_types
    assert not read_model_files(str(write(tmp_path, "ce_modernbert"))).has_token_types
    electra = read_model_files(str(write(tmp_path, "ce_electra")))
    assert electra.has_token_types
    assert electra.reason_against_vllm == "vLLM's electra does not mark the second text of a pair (token types)"


def test_qwen3_reranker_is_known_by_its_name(tmp_path: Path) -> None:
    found = read(write(tmp_path, "ce_qwen3_reranker"))
    assert found.answers is not None
    assert found.template is QWEN3_RERANKER
    assert found.pooling is Pooling.LAST_TOKEN
    with pytest.raises(ModelError, match="it generates text"):
        read_model_files(str(write(tmp_path, "chat_qwen3")))


def test_an_embedder_may_carry_a_classifiers_head(tmp_path: Path) -> None:
    assert read_model_files(str(write(tmp_path, "embedder_with_classifier"))).classifier is None


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("ce_bert", {"architectures": ["OddForSequenceClassification"]}, "the head of a OddFor"),
        ("ce_bert", {"id2label": {"a": "b"}}, "id2label in config.json has a key that is no number"),
        ("ce_bert", {"id2label": {"0": "a", "2": "b"}}, "id2label in config.json does not number its 2 labels from 0"),
        ("ce_bert", {"id2label": {"-1": "a", "0": "b"}}, "id2label in config.json does not number its 2 labels from 0"),
        ("ce_bert", {"id2label": {"1": "a"}}, "id2label in config.json does not number its 1 labels from 0"),
        ("ce_bert", {"sentence_transformers": {"activation_fn": "my.Code"}}, "the activation_fn my.Code is not one of"),
        ("ce_modernbert", {"classifier_pooling": "max"}, "classifier_pooling in config.json is neither cls nor mean"),
        ("ce_modernbert", {"classifier_activation": "odd"}, "the activation 'odd' of the classifier is not known"),
        ("ce_deberta_v3", {"pooler_hidden_size": 3}, "a pooler_hidden_size that is not hidden_size"),
    ],
)
def test_a_head_that_is_not_known_is_refused(tmp_path: Path, case: str, changes: Any, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_model_files(str(write(tmp_path, case, **changes)))
    assert f"{case}: {message}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_that_lack_the_head_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from tritonembed_engine.model.steps import Steps

    folder = write(tmp_path, "ce_bert")
    weights = load_file(folder / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"^the model's weights lack classifier\.weight$"):
        Steps(read_model_files(str(folder)).steps)
