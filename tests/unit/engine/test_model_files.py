"""A model is described as sentence-transformers reads it, and what can't be served is refused in one line."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers import SentenceTransformer
from tests.models import ModelShelf

from tritonembed_engine.errors import ModelError
from tritonembed_engine.model.files import read_model_files

CONFIG = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_size": 32,
    "vocab_size": 100,
    "max_position_embeddings": 512,
}
TRANSFORMER = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
NORMALIZE = {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a model's folder: a BERT with a tokenizer, CLS pooling and no normalisation, except for what is given.

    None leaves a file out. Keys: config, modules, pooling, dense, sentence, prompts, tokenizer_config, tokenizer.
    """
    paths = {
        "config": "config.json",
        "modules": "modules.json",
        "pooling": "1_Pooling/config.json",
        "dense": "2_Dense/config.json",
        "sentence": "sentence_bert_config.json",
        "prompts": "config_sentence_transformers.json",
        "tokenizer_config": "tokenizer_config.json",
        "tokenizer": "tokenizer.json",
    }
    defaults: dict[str, Any] = {
        "config": CONFIG,
        "modules": [TRANSFORMER, POOLING],
        "pooling": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
        "tokenizer": {},
    }

    def write_folder(**given: Any) -> Path:
        folder = tmp_path / "some-model"
        for name, value in {**defaults, **given}.items():
            if value is not None:
                path = folder / paths[name]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(value if isinstance(value, str) else json.dumps(value))
        return folder

    return write_folder


def refusal(model: str | Path, revision: str | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        read_model_files(str(model), revision)
    message = str(caught.value)
    assert "\n" not in message
    assert "/" not in message
    return message


@pytest.mark.parametrize("name", ["bert", "bert-cls", "roberta", "xlm-roberta", "modernbert", "qwen3"])
def test_what_is_read_is_what_sentence_transformers_reads(name: str, shelf: ModelShelf) -> None:
    files = read_model_files(str(shelf(name)))
    theirs = SentenceTransformer(str(shelf(name)), device="cpu")
    assert files.max_length == theirs.max_seq_length
    assert files.dimensions == theirs.get_embedding_dimension()
    assert files.pooling == {"cls": "CLS", "mean": "MEAN", "lasttoken": "LAST"}[theirs[1].pooling_mode]
    assert files.normalize == (len(theirs) == 3)
    assert files.vocab_size == theirs[0].auto_model.get_input_embeddings().num_embeddings
    assert {**theirs.prompts, **files.prompts} == theirs.prompts
    assert files.is_decoder == (name == "qwen3")
    assert files.is_local


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_cls_token": True}, "CLS"),
        ({"pooling_mode_mean_tokens": True}, "MEAN"),
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, "LAST"),
        ({"pooling_mode": "cls"}, "CLS"),
        ({"pooling_mode": ["mean"]}, "MEAN"),
        ({"pooling_mode": "lasttoken", "pooling_mode_cls_token": True}, "LAST"),
        ({"word_embedding_dimension": 32}, "MEAN"),
    ],
)
def test_pooling_is_read_in_its_old_and_its_new_form(pooling: Any, expected: str, write: Write) -> None:
    assert read_model_files(str(write(pooling=pooling))).pooling == expected


@pytest.mark.parametrize(
    ("pooling", "named"),
    [
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_weightedmean_tokens": True}, "weightedmean"),
        ({"pooling_mode": "mean_sqrt_len_tokens"}, "mean_sqrt_len_tokens"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "cls and mean"),
        ({"pooling_mode": ["cls", "max"]}, "cls and max"),
        ({"pooling_mode_mean_tokens": True, "include_prompt": False}, "include_prompt"),
    ],
)
def test_a_pooling_that_vllm_has_not_is_refused_by_name(pooling: Any, named: str, write: Write) -> None:
    assert named in refusal(write(pooling=pooling))


def test_a_plain_encoder_gets_the_mean_and_no_normalisation(write: Write) -> None:
    files = read_model_files(str(write(modules=None, pooling=None)))
    assert (files.pooling, files.normalize, files.dimensions) == ("MEAN", False, 32)


def test_modules_after_the_pooling_count(write: Write) -> None:
    dense = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.base.modules.dense.Dense"}
    folder = write(modules=[TRANSFORMER, POOLING, dense, NORMALIZE], dense={"in_features": 32, "out_features": 16})
    files = read_model_files(str(folder))
    assert (files.hidden_size, files.dimensions, files.normalize) == (32, 16, True)


@pytest.mark.parametrize(
    ("modules", "named"),
    [
        ([TRANSFORMER, POOLING, {"path": "2_LSTM", "type": "sentence_transformers.models.LSTM"}], "LSTM"),
        ([{"path": "", "type": "sentence_transformers.models.CLIPModel"}], "CLIPModel"),
        ([TRANSFORMER, POOLING, NORMALIZE, {"path": "3_Dense", "type": "x.Dense"}], "Normalize, Dense"),
        ([], "none"),
        ({}, "none"),
        ([{"type": "x"}], "modules.json"),
        ("[", "modules.json"),
    ],
)
def test_modules_that_can_not_be_served_are_refused_by_name(modules: Any, named: str, write: Write) -> None:
    assert named in refusal(write(modules=modules))


PROMPTS = {"query": "q: ", "document": "d: ", "other": "o: "}


@pytest.mark.parametrize(
    ("prompts", "input_type", "expected"),
    [
        ({"prompts": PROMPTS}, "query", "q: "),
        ({"prompts": PROMPTS}, "passage", "d: "),
        ({"prompts": {**PROMPTS, "passage": "p: "}}, "passage", "p: "),
        ({"prompts": PROMPTS}, None, ""),
        ({"prompts": PROMPTS, "default_prompt_name": "other"}, None, "o: "),
        ({"prompts": {"other": "o: "}, "default_prompt_name": "other"}, "query", ""),
        ({"prompts": {"query": None}, "default_prompt_name": "query"}, None, ""),
        ({"default_prompt_name": "document"}, None, ""),
        (None, "query", ""),
        (None, None, ""),
    ],
)
def test_input_type_chooses_the_models_prompt(prompts: Any, input_type: str, expected: str, write: Write) -> None:
    assert read_model_files(str(write(prompts=prompts))).prompt_for(input_type) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 512),
        ({"sentence": {"max_seq_length": 128}}, 128),
        ({"sentence": {"max_seq_length": 4096}}, 512),
        ({"sentence": {"processor_kwargs": {"model_max_length": 100}, "max_seq_length": 128}}, 100),
        ({"tokenizer_config": {"model_max_length": 256}}, 256),
        ({"tokenizer_config": {"model_max_length": int(1e30)}}, 512),
        ({"sentence": {"max_seq_length": 300}, "tokenizer_config": {"model_max_length": 256}}, 300),
        ({"config": {**CONFIG, "model_type": "roberta", "pad_token_id": 1, "max_position_embeddings": 514}}, 512),
        ({"config": {**CONFIG, "model_type": "xlm-roberta", "pad_token_id": 0}}, 511),
        ({"config": {key: CONFIG[key] for key in CONFIG if key != "max_position_embeddings"}}, 512),
        ({"config": {"model_type": "nomic_bert", "n_embd": 32, "vocab_size": 9, "n_positions": 77}}, 77),
    ],
)
def test_the_maximum_length_counts_positions_that_a_token_can_have(files: Any, expected: int, write: Write) -> None:
    assert read_model_files(str(write(**files))).max_length == expected


@pytest.mark.parametrize(("asked", "expected"), [(None, 512), (-1, 512), (100, 100), (1000, 512)])
def test_a_shorter_limit_can_be_asked_for(asked: int | None, expected: int, write: Write) -> None:
    assert read_model_files(str(write()), max_length=asked).max_length == expected


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"config": None}, "has no config.json"),
        ({"config": "{"}, "config.json can't be read"),
        ({"config": [1]}, "config.json is not a JSON object"),
        ({"tokenizer": None}, "has no tokenizer"),
        ({"config": {"architectures": ["ViTModel"], "model_type": "vit", "hidden_size": 8, "image_size": 224}}, "text"),
        ({"config": {"architectures": ["CLIPModel"], "model_type": "clip", "vision_config": {}}}, "text"),
        ({"config": {**CONFIG, "model_type": "whisper", "is_encoder_decoder": True}}, "not a text embedding model"),
        ({"config": {"hidden_size": 8}}, "not a text embedding model"),
        ({"config": {"architectures": ["OddModel"], "model_type": "odd", "hidden_size": 8}}, "no vocab_size"),
        ({"config": {**CONFIG, "architectures": ["BertForSequenceClassification"]}, "modules": None}, "classifier"),
        ({"config": {**CONFIG, "architectures": ["Qwen3ForCausalLM"]}, "modules": None}, "generates text"),
        ({"config": {**CONFIG, "max_position_embeddings": -1}}, "how many tokens"),
        ({"prompts": {"prompts": {}, "default_prompt_name": "gone"}}, "default prompt 'gone'"),
    ],
)
def test_what_is_not_an_embedding_model_is_refused_in_one_line(files: Any, named: str, write: Write) -> None:
    assert named in refusal(write(**files))


@pytest.mark.parametrize("model", ["/no/such/folder/some-model", "./some-model", "a/b/some-model", "~/some-model"])
def test_a_folder_that_does_not_exist_is_named_without_its_path(model: str) -> None:
    assert refusal(model) == "there is no model folder some-model"


def test_a_file_is_not_a_model(write: Write) -> None:
    assert refusal(write() / "config.json") == "config.json is a file, not a model's folder"


def test_a_hub_that_can_not_be_reached_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "some-model is neither a folder nor in the hub's cache" in refusal("owner/some-model", "main")


def test_reading_needs_neither_torch_nor_transformers(shelf: ModelShelf) -> None:
    program = (
        "import sys; from tritonembed_engine.model.files import read_model_files; read_model_files(sys.argv[1]);"
        "print(sorted({'torch', 'transformers', 'vllm', 'tokenizers'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program, str(shelf("bert"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": "engine"})
    assert done.stdout.strip() == "[]"
