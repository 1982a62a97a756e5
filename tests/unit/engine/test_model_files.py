"""A model is read as sentence-transformers reads it. If it can't be served, it is refused in one line."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers import SentenceTransformer
from tests.models import ModelShelf

from tritonembed_engine.errors import InvalidArgument, ModelError
from tritonembed_engine.model.files import read_model_files

CONFIG = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_size": 32,
    "vocab_size": 100,
    "max_position_embeddings": 512,
}
T5 = {
    "architectures": ["T5EncoderModel"],
    "model_type": "t5",
    "d_model": 32,
    "vocab_size": 100,
    "n_positions": 512,
    "is_encoder_decoder": True,
}
DEBERTA = {**CONFIG, "architectures": ["DebertaV2Model"], "model_type": "deberta-v2", "position_biased_input": False}
WIDTH = {"word_embedding_dimension": 32}
TRANSFORMER = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
DENSE = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.base.modules.dense.Dense"}
NORM = {"idx": 2, "name": "2", "path": "2_LayerNorm", "type": "sentence_transformers.models.LayerNorm"}
POOLING = {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
NORMALIZE = {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a model's folder: a BERT with a tokenizer, CLS pooling and no normalisation, changed by the arguments.

    None leaves a file out. Keys: config, modules, pooling, dense, norm, sentence, prompts, tokenizer_config, tokenizer;
    weights: of the Dense and the LayerNorm.
    """
    paths = {
        "config": "config.json",
        "modules": "modules.json",
        "pooling": "1_Pooling/config.json",
        "dense": "2_Dense/config.json",
        "norm": "2_LayerNorm/config.json",
        "normalize": "2_Normalize/config.json",
        "weights": "2_Dense/model.safetensors",
        "norm_weights": "2_LayerNorm/model.safetensors",
        "sentence": "sentence_bert_config.json",
        "prompts": "config_sentence_transformers.json",
        "tokenizer_config": "tokenizer_config.json",
        "tokenizer": "tokenizer.json",
    }
    defaults: dict[str, Any] = {
        "config": CONFIG,
        "modules": [TRANSFORMER, POOLING],
        "pooling": {**WIDTH, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
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
    if Path(model).is_absolute():
        # Files are named by their path inside the model's folder.
        assert str(Path(model).parent) not in message
    return message


@pytest.mark.parametrize("name", ["bert", "bert-cls", "roberta", "xlm-roberta", "modernbert", "qwen3"])
def test_settings_are_read_as_sentence_transformers_reads_them(name: str, shelf: ModelShelf) -> None:
    files = read_model_files(str(shelf(name)))
    theirs = SentenceTransformer(str(shelf(name)), device="cpu")
    assert files.max_length == theirs.max_seq_length
    assert files.dimensions == theirs.get_embedding_dimension()
    assert files.pooling == (theirs[1].pooling_mode,)
    assert files.include_prompt == theirs[1].include_prompt
    assert files.truncate == {"right": "END", "left": "START"}[theirs.tokenizer.truncation_side]
    assert files.normalize == (len(theirs) == 3)
    assert files.vocab_size == theirs[0].auto_model.get_input_embeddings().num_embeddings
    assert {"query": "", "document": "", **files.prompts} == theirs.prompts
    assert files.default_prompt_name == theirs.default_prompt_name
    assert files.is_causal == (name == "qwen3")
    assert files.is_local


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_cls_token": True}, ("cls",)),
        ({"pooling_mode_mean_tokens": True}, ("mean",)),
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, ("lasttoken",)),
        ({"pooling_mode_max_tokens": True}, ("max",)),
        ({"pooling_mode_weightedmean_tokens": True}, ("weightedmean",)),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, ("mean_sqrt_len_tokens",)),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, ("cls", "mean")),
        ({"pooling_mode_mean_tokens": False}, ("mean",)),
        ({"pooling_mode": "cls"}, ("cls",)),
        ({"pooling_mode": ["mean"]}, ("mean",)),
        ({"pooling_mode": ["max", "cls", "max"]}, ("max", "cls", "max")),
        ({"pooling_mode": "lasttoken", "pooling_mode_cls_token": True}, ("lasttoken",)),
        ({}, ("mean",)),
    ],
)
def test_pooling_is_read_in_its_old_and_its_new_form(pooling: Any, expected: tuple[str, ...], write: Write) -> None:
    files = read_model_files(str(write(pooling={**WIDTH, **pooling})))
    assert files.pooling == expected
    assert files.dimensions == 32 * len(expected)


@pytest.mark.parametrize(("value", "expected"), [(True, True), (False, False), (None, False), (0, False)])
def test_a_prompt_can_be_left_out_of_the_pooling(value: Any, expected: bool, write: Write) -> None:
    files = read_model_files(str(write(pooling={**WIDTH, "include_prompt": value})))
    assert files.include_prompt == expected
    assert read_model_files(str(write(pooling=WIDTH))).include_prompt


@pytest.mark.parametrize(
    ("pooling", "named"),
    [
        ({**WIDTH, "pooling_mode": "median"}, "the pooling 'median' is not one of cls, max, mean"),
        ({**WIDTH, "pooling_mode": None}, "the pooling 'None' is not one of"),
        ({**WIDTH, "pooling_mode": 5}, "the pooling '5' is not one of"),
        ({**WIDTH, "pooling_mode": ["cls", {}]}, "the pooling '{}' is not one of"),
        ({**WIDTH, "pooling_mode": []}, "1_Pooling/config.json names no pooling"),
        ({**WIDTH, "pooling_odd": True}, "1_Pooling/config.json has an unknown key: pooling_odd"),
        ({"pooling_mode": "cls"}, "1_Pooling/config.json has no word_embedding_dimension"),
        (None, "1_Pooling/config.json is missing, and modules.json names it"),
        ({}, "1_Pooling/config.json is empty, and modules.json names it"),
    ],
)
def test_a_pooling_unknown_to_sentence_transformers_is_refused_by_name(pooling: Any, named: str, write: Write) -> None:
    assert named in refusal(write(pooling=pooling))


def test_a_plain_encoder_gets_the_mean_no_normalisation_and_no_settings(write: Write) -> None:
    """Without modules.json, sentence-transformers reads neither of the two files."""
    sentence = {"max_seq_length": 7, "do_lower_case": True, "odd": 1}
    prompts = {"prompts": {"query": "q: "}, "default_prompt_name": "query", "truncate_dim": 8}
    files = read_model_files(str(write(modules=None, pooling=None, sentence=sentence, prompts=prompts)))
    assert (files.pooling, files.normalize, files.dimensions) == (("mean",), False, 32)
    assert (files.max_length, files.lowercase, files.truncate_dim) == (512, False, None)
    assert (files.prompt_for("query"), files.prompt_for(None)) == ("", "")


def test_modules_after_the_pooling_count(write: Write) -> None:
    dense = {"in_features": 32, "out_features": 16}
    normalize = {**NORMALIZE, "name": "3"}
    folder = write(modules=[TRANSFORMER, POOLING, DENSE, normalize], dense=dense, weights="")
    files = read_model_files(str(folder))
    assert (files.hidden_size, files.dimensions, files.normalize) == (32, 16, True)
    assert [step.kind for step in files.steps] == ["Dense"]
    assert files.steps[0].activation == "torch.nn.modules.activation.Tanh"


def test_a_normalisation_that_is_not_the_last_is_a_step(write: Write) -> None:
    dropout = {"name": "4", "path": "4_Dropout", "type": "sentence_transformers.models.Dropout"}
    dense = {"in_features": 32, "out_features": 16, "activation_function": "torch.nn.modules.linear.Identity"}
    modules = [TRANSFORMER, POOLING, {**NORMALIZE, "name": "n"}, DENSE, dropout]
    files = read_model_files(str(write(modules=modules, dense=dense, weights="")))
    assert ([step.kind for step in files.steps], files.normalize) == (["Normalize", "Dense"], False)


def test_the_oldest_layout_has_its_transformer_in_a_folder(write: Write) -> None:
    folder = write(modules=[{**TRANSFORMER, "path": "0_Transformer"}, POOLING], sentence={"max_seq_length": 9})
    (folder / "0_Transformer").mkdir()
    for name in ("config.json", "tokenizer.json", "sentence_bert_config.json"):
        (folder / name).rename(folder / "0_Transformer" / name)
    files = read_model_files(str(folder))
    assert files.transformer == folder / "0_Transformer"
    assert files.max_length == 9


@pytest.mark.parametrize(
    ("modules", "named"),
    [
        ([TRANSFORMER, POOLING, {**DENSE, "type": "sentence_transformers.models.LSTM"}], "a LSTM module can't"),
        ([{**TRANSFORMER, "type": "sentence_transformers.models.CLIPModel"}], "the modules CLIPModel can't be served"),
        ([TRANSFORMER, POOLING, {**DENSE, "type": "x.Dense"}], "x.Dense is the model's own code"),
        ([POOLING, TRANSFORMER], "they have to begin with Transformer, Pooling"),
        ([TRANSFORMER], "they have to begin with Transformer, Pooling"),
        ([TRANSFORMER, DENSE], "2_Dense/config.json is missing"),
        ([TRANSFORMER, {**DENSE, "type": "sentence_transformers.sparse_encoder.models.SpladePooling"}], "SPLADE"),
        ([TRANSFORMER, {**DENSE, "type": "sentence_transformers.cross_encoder.LogitScore"}], "reranker"),
        ([TRANSFORMER, {**POOLING, "path": "../1_Pooling"}], "names a folder outside the model's"),
        ([TRANSFORMER, {**POOLING, "path": "/1_Pooling"}], "names a folder outside the model's"),
        ([TRANSFORMER, {**POOLING, "name": "0"}], "does not give each module a name of its own"),
        ([TRANSFORMER, {**POOLING, "name": "a.b"}], "does not give each module a name of its own"),
        ([], "none"),
        ({}, "none"),
        ([{"type": "x"}], "modules.json is not a list of modules"),
        (5, "modules.json is not a list of modules"),
        ("[", "modules.json can't be read"),
    ],
)
def test_modules_that_can_not_be_served_are_refused_by_name(modules: Any, named: str, write: Write) -> None:
    assert named in refusal(write(modules=modules))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"in_features": 48}, "2_Dense/config.json: in_features is 48, but the vector before it has 32 dimensions"),
        ({"out_features": None}, "2_Dense/config.json has no out_features"),
        ({"out_features": 0}, "2_Dense/config.json has no out_features"),
        ({"activation_function": None}, "2_Dense/config.json: activation_function is not a name"),
        ({"module_input_name": "other"}, "2_Dense/config.json: no module writes its input 'other'"),
        ({"module_input_name": None}, "module_input_name and module_output_name are not names"),
        ({"module_output_name": 5}, "module_input_name and module_output_name are not names"),
        ({"module_input_name": "token_embeddings"}, "a Dense module on token_embeddings can't be served"),
        ({"module_output_name": "attention_mask"}, "a Dense module on attention_mask can't be served"),
    ],
)
def test_a_dense_module_that_does_not_fit_is_refused_by_its_folder(change: Any, named: str, write: Write) -> None:
    dense = {"in_features": 32, "out_features": 16, **change}
    assert named in refusal(write(modules=[TRANSFORMER, POOLING, DENSE], dense=dense, weights=""))


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"dense": {"in_features": 32, "out_features": 16}}, "2_Dense has no weights"),
        ({"dense": None}, "2_Dense/config.json is missing"),
        ({"dense": {}, "weights": ""}, "2_Dense/config.json is empty"),
        ({"dense": "{", "weights": ""}, "config.json can't be read"),
    ],
)
def test_a_module_without_its_files_is_refused_by_their_name(files: Any, named: str, write: Write) -> None:
    assert named in refusal(write(modules=[TRANSFORMER, POOLING, DENSE], **files))


@pytest.mark.parametrize(
    ("norm", "named"),
    [
        ({"dimension": 16}, "2_LayerNorm/config.json: dimension is 16"),
        ({"dimension": 32, "eps": 1}, "2_LayerNorm/config.json has an unknown key: eps"),
    ],
)
def test_a_layer_norm_that_does_not_fit_is_refused_by_its_folder(norm: Any, named: str, write: Write) -> None:
    assert named in refusal(write(modules=[TRANSFORMER, POOLING, NORM], norm=norm, norm_weights=""))


@pytest.mark.parametrize(
    ("normalize", "named"),
    [
        ({"module_input_name": "gone"}, "2_Normalize/config.json: no module writes its input 'gone'"),
        ({"module_output_name": "token_embeddings"}, "a Normalize module on token_embeddings can't be served"),
    ],
)
def test_a_normalisation_of_something_else_is_refused(normalize: Any, named: str, write: Write) -> None:
    assert named in refusal(write(modules=[TRANSFORMER, POOLING, NORMALIZE], normalize=normalize))


def test_keys_without_effect_are_reported(write: Write) -> None:
    dense = {"in_features": 32, "out_features": 16, "odd": 1}
    folder = write(modules=[TRANSFORMER, POOLING, DENSE], dense=dense, weights="", prompts={"new": 1})
    assert read_model_files(str(folder)).unknown == (
        "config_sentence_transformers.json: new",
        "2_Dense/config.json: odd",
    )


TEXT = {"method": "forward", "method_output_name": "last_hidden_state"}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"odd": 1}, "sentence_bert_config.json has an unknown key: odd"),
        ({"max_seq_length": 0}, "max_seq_length is not a whole number of at least 1"),
        ({"max_seq_length": "9"}, "max_seq_length is not a whole number"),
        ({"max_seq_length": True}, "max_seq_length is not a whole number"),
        ({"max_seq_length": 9.5}, "max_seq_length is not a whole number"),
        ({"max_seq_length": float("nan")}, "max_seq_length is not a whole number"),
        ({"query_length": 0}, "query_length is not a whole number"),
        ({"document_length": -1}, "document_length is not a whole number"),
        ({"processor_kwargs": {"model_max_length": 0}}, "model_max_length is not a whole number"),
        ({"processor_kwargs": {"odd": 1}}, "processor_kwargs has odd, which can't be followed"),
        ({"tokenizer_args": {"odd": 1}}, "processor_kwargs has odd, which can't be followed"),
        ({"model_args": {"num_labels": 1}}, "model_kwargs has num_labels"),
        ({"config_kwargs": {"num_hidden_layers": 1}}, "config_kwargs has num_hidden_layers"),
        ({"model_kwargs": []}, "model_kwargs is not an object"),
        ({"processor_kwargs": None}, "processor_kwargs is not an object"),
        ({"processing_kwargs": [1]}, "processing_kwargs is not an object"),
        ({"processing_kwargs": {"text": [1]}}, "text is not an object"),
        ({"processing_kwargs": {"text": {"truncation": False}}}, "processing_kwargs has truncation"),
        ({"processing_kwargs": {"text": {"truncation": None}}}, "processing_kwargs has truncation"),
        ({"processing_kwargs": {"common": {"add_special_tokens": False}}}, "processing_kwargs has add_special_tokens"),
        ({"processing_kwargs": {"text": {"padding": "max_length"}}}, "processing_kwargs has padding"),
        ({"processing_kwargs": {"text": {"max_length": 0}}}, "max_length is not a whole number"),
        ({"transformer_task": "sequence-classification"}, "a reranker (CrossEncoder)"),
        ({"transformer_task": "fill-mask"}, "a sparse encoder (SPLADE)"),
        ({"transformer_task": "text-generation"}, "the transformer_task 'text-generation' can't be served"),
        ({"modality_config": {"message": TEXT}}, "a chat template (modality_config has message)"),
        ({"modality_config": {"text": TEXT, "image": TEXT}}, "modality_config has text, image"),
        ({"modality_config": None}, "modality_config is not an object"),
        ({"modality_config": {"text": None}}, "modality_config is not an object"),
        ({"modality_config": {"text": {**TEXT, "method": "encode"}}}, "another output than the last hidden state"),
        ({"modality_config": {"text": {**TEXT, "method_output_name": "pooler_output"}}}, "another output than"),
        ({"modality_config": {"text": TEXT}}, "module_output_name is not token_embeddings"),
        ({"module_output_name": "sentence_embedding"}, "module_output_name is not token_embeddings"),
        ({"query_expansion": {"length": 8}}, "query_expansion can't be followed"),
        ({"tokenizer_name_or_path": "other"}, "tokenizer_name_or_path can't be followed"),
    ],
)
def test_a_setting_that_can_not_be_followed_is_refused_by_its_key(settings: Any, named: str, write: Write) -> None:
    assert named in refusal(write(sentence=settings))


@pytest.mark.parametrize(
    ("prompts", "named"),
    [
        ({"model_type": "CrossEncoder"}, "it is a reranker (CrossEncoder)"),
        ({"model_type": "SparseEncoder"}, "it is a sparse encoder"),
        ({"model_type": "MultiVectorEncoder"}, "a Pooling module in a multi-vector model can't be served"),
        ({"model_type": "Other"}, "the model_type 'Other' can't be served"),
        ({"model_type": None}, "the model_type 'None' can't be served"),
        ({"prompts": []}, "prompts is not an object of texts"),
        ({"prompts": {"query": 5}}, "prompts is not an object of texts"),
        ({"prompts": {}, "default_prompt_name": "gone"}, "default prompt 'gone' is not among its prompts"),
        ({"truncate_dim": 0}, "truncate_dim is not a whole number of at least 1"),
        ({"requirements": {"transformers": ">=99"}}, "requirements can't be checked"),
        ([1], "config_sentence_transformers.json is not a JSON object"),
    ],
)
def test_sentence_settings_that_can_not_be_followed_are_refused_by_their_key(
    prompts: Any, named: str, write: Write
) -> None:
    assert named in refusal(write(prompts=prompts))


def test_an_old_name_of_a_setting_wins_over_the_new_one(write: Write) -> None:
    sentence = {"tokenizer_args": {"model_max_length": 9}, "processor_kwargs": {"model_max_length": 8}}
    assert read_model_files(str(write(sentence=sentence))).max_length == 9


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_seq_length": 20, "query_length": 5}, {None: 20, "query": 5, "passage": 20}),
        ({"max_seq_length": 20, "document_length": 30}, {None: 20, "query": 20, "passage": 30}),
        ({"document_length": 9999}, {None: 512, "query": 512, "passage": 512}),
        ({"processing_kwargs": {"text": {"max_length": 8}}, "query_length": 5}, {None: 8, "query": 8, "passage": 8}),
        ({"processing_kwargs": {"text": {"max_length": 8}, "common": {"max_length": 6}}}, 6),
        ({"processing_kwargs": {"text": {"max_length": None}}, "query_length": 5, "max_seq_length": 9}, 9),
    ],
)
def test_lengths_follow_the_input_type(settings: Any, expected: Any, write: Write) -> None:
    files = read_model_files(str(write(sentence=settings)))
    if isinstance(expected, int):
        expected = {None: expected, "query": expected, "passage": expected}
    assert files.lengths == expected
    assert files.max_length == max(expected.values())


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, "END"),
        ({"tokenizer_config": {"truncation_side": "left"}}, "START"),
        ({"sentence": {"processor_kwargs": {"truncation_side": "left"}}}, "START"),
        (
            {
                "sentence": {"processor_kwargs": {"truncation_side": "right"}},
                "tokenizer_config": {"truncation_side": "left"},
            },
            "END",
        ),
    ],
)
def test_the_files_choose_the_side_on_which_a_text_is_cut(files: Any, expected: str, write: Write) -> None:
    assert read_model_files(str(write(**files))).truncate == expected


@pytest.mark.parametrize(("dimensions", "expected"), [(8, 8), (32, None), (500, None), (None, None)])
def test_truncate_dim_is_the_default_of_dimensions(dimensions: Any, expected: int | None, write: Write) -> None:
    assert read_model_files(str(write(prompts={"truncate_dim": dimensions}))).truncate_dim == expected


PROMPTS = {"query": "q: ", "document": "d: ", "other": "o: "}


@pytest.mark.parametrize(
    ("prompts", "input_type", "expected"),
    [
        ({"prompts": PROMPTS}, "query", "q: "),
        ({"prompts": PROMPTS}, "passage", "d: "),
        ({"prompts": {**PROMPTS, "passage": "p: "}}, "passage", "d: "),
        ({"prompts": {"corpus": "c: ", "passage": "p: "}}, "passage", "p: "),
        ({"prompts": {"corpus": "c: "}}, "passage", "c: "),
        ({"prompts": {"document": "", "passage": "p: "}}, "passage", ""),
        ({"prompts": {"document": None, "passage": "p: "}}, "passage", ""),
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


def test_a_prompt_of_the_request_wins_over_the_models(write: Write) -> None:
    files = read_model_files(str(write(prompts={"prompts": PROMPTS, "default_prompt_name": "other"})))
    assert files.prompt_for("query", "document") == "d: "
    assert files.prompt_for("query", None, "free: ") == "free: "
    assert files.prompt_for(None, None, "") == ""
    with pytest.raises(InvalidArgument, match=r"^prompt_name: is not one of the model's: document, other, query$"):
        files.prompt_for("query", "gone")


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
        ({"config": {**CONFIG, "model_type": "mpnet", "pad_token_id": 1, "max_position_embeddings": 514}}, 512),
        ({"config": T5, "sentence": {"max_seq_length": 700}}, 700),
        ({"config": T5, "tokenizer_config": {"model_max_length": 256}}, 256),
        ({"config": DEBERTA}, 512),
        ({"config": DEBERTA, "sentence": {"max_seq_length": 700}}, 700),
        ({"config": DEBERTA | {"position_biased_input": True}, "sentence": {"max_seq_length": 700}}, 512),
    ],
)
def test_the_maximum_length_counts_positions_that_a_token_can_have(files: Any, expected: int, write: Write) -> None:
    assert read_model_files(str(write(**files))).max_length == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (CONFIG, None),
        (T5, "vLLM has no t5 models"),
        (DEBERTA, "vLLM has no deberta-v2 models"),
        ({**CONFIG, "model_type": "electra", "embedding_size": CONFIG["hidden_size"]}, None),
        ({**CONFIG, "model_type": "electra", "embedding_size": 8}, "vLLM leaves out ELECTRA's projection"),
        ({**CONFIG, "model_type": "xlm-roberta-xl"}, "the positions of a xlm-roberta-xl model begin after padding's"),
    ],
)
def test_what_vllm_lacks_is_known_before_anything_is_loaded(config: Any, expected: str | None, write: Write) -> None:
    files = read_model_files(str(write(config=config, sentence={"max_seq_length": 64})))
    assert files.model_type == config["model_type"]
    assert str(files.reason_against_vllm).startswith(str(expected))


@pytest.mark.parametrize(("asked", "expected"), [(None, 512), (-1, 512), (100, 100), (1000, 512)])
def test_a_shorter_limit_can_be_requested(asked: int | None, expected: int, write: Write) -> None:
    assert read_model_files(str(write()), max_length=asked).max_length == expected


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"config": None}, "has no config.json"),
        ({"config": "{"}, "config.json can't be read"),
        ({"config": [1]}, "config.json is not a JSON object"),
        ({"tokenizer": None}, "has no tokenizer"),
        ({"config": {"architectures": ["ViTModel"], "model_type": "vit", "hidden_size": 8, "image_size": 224}}, "text"),
        ({"config": {"architectures": ["SiglipModel"], "model_type": "siglip", "vision_config": {}}}, "text"),
        ({"config": {**CONFIG, "model_type": "whisper", "is_encoder_decoder": True}}, "not a text embedding model"),
        ({"config": {"hidden_size": 8}}, "not a text embedding model"),
        ({"config": {"architectures": ["OddModel"], "model_type": "odd", "hidden_size": 8}}, "no vocab_size"),
        (
            {"config": {**CONFIG, "architectures": ["BertForTokenClassification"]}, "modules": None},
            "neither an embedding",
        ),
        ({"config": {**CONFIG, "architectures": ["Qwen3ForCausalLM"]}, "modules": None}, "generates text"),
        ({"config": {**CONFIG, "max_position_embeddings": -1}}, "sets no maximum number of tokens"),
        ({"config": {**CONFIG, "is_decoder": True}}, "is_decoder in config.json makes a bert causal"),
        (
            {"config": {**CONFIG, "position_embedding_type": "relative_key"}},
            "bert with position_embedding_type relative_key is not served",
        ),
        (
            {"config": {**CONFIG, "model_type": "albert", "position_embedding_type": "relative_key_query"}},
            "albert with position_embedding_type relative_key_query is not served",
        ),
        ({"config": {**CONFIG, "model_type": "ibert"}}, "the positions of a ibert model begin after padding's"),
        ({"config": {**T5, "model_type": "t5"}, "modules": None}, "not a text embedding model (model type t5)"),
        ({"config": {**CONFIG, "lora_adaptations": ["a"]}}, "LoRA adapters (lora_adaptations)"),
        ({"modules": None, "tokenizer_config": {"chat_template": "x"}}, "has a chat template"),
    ],
)
def test_a_folder_without_an_embedding_model_is_refused_in_one_line(files: Any, named: str, write: Write) -> None:
    assert named in refusal(write(**files))


@pytest.mark.parametrize("model", ["/no/such/folder/some-model", "./some-model", "a/b/some-model", "~/some-model"])
def test_a_folder_that_does_not_exist_is_named_without_its_path(model: str) -> None:
    assert refusal(model) == "there is no model folder some-model"


def test_a_file_is_not_a_model(write: Write) -> None:
    assert refusal(write() / "config.json") == "config.json is a file, not a model's folder"


def test_a_hub_that_can_not_be_reached_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert refusal("owner/some-model", "main").startswith("owner/some-model is neither a folder nor in the hub's cache")


def test_reading_needs_neither_torch_nor_transformers(shelf: ModelShelf) -> None:
    program = (
        "import sys; from tritonembed_engine.model.files import read_model_files; read_model_files(sys.argv[1]);"
        "print(sorted({'torch', 'transformers', 'vllm', 'tokenizers'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program, str(shelf("bert"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": "engine"})
    assert done.stdout.strip() == "[]"
