"""CLIP's text tower gives its projected features in every layout; a folder that is not whole is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.broken_files import cut_in_half

from tritonembed_engine.errors import ModelError
from tritonembed_engine.factory import create_executor
from tritonembed_engine.model.files import read_model_files
from tritonembed_engine.parameters import EmbedParameters
from tritonembed_engine.reference.check import Wrong, refuse_wrong
from tritonembed_engine.reference.making import make_reference
from tritonembed_engine.settings import ModelSettings
from tritonembed_engine.token_ids import TokenIds
from tritonembed_engine.tokenizing.text_tokenizer import TextTokenizer
from tritonembed_perf.families.clip import FEATURES, PROJECTION
from tritonembed_perf.families.registry import load_cases
from tritonembed_perf.families.writing import edit_json

TEXTS = ["", "a photo of a cat", "end <|endoftext|> inside", *("railway " * n for n in range(1, 90, 11))]
TOWER = "0_CLIPModel"

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a case of `tritonembed_perf.families`."""

    def once(name: str) -> Path:
        load_cases()[name].write(tmp_path / name)
        return tmp_path / name

    return once


def settings_of(folder: Path) -> ModelSettings:
    return ModelSettings.model_validate({"model": str(folder), "engine": {"reference": "off"}})


def load(folder: Path) -> Any:
    files = read_model_files(str(folder))
    TextTokenizer(files)
    return create_executor(settings_of(folder), files, "cpu")


def embed(folder: Path) -> Any:
    files = read_model_files(str(folder))
    [ids] = TextTokenizer(files).encode_requests([([text.encode() for text in TEXTS], EmbedParameters())])
    assert isinstance(ids, list)
    return load(folder).launch(TokenIds.join(ids)).result()


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_layout_of_the_same_weights_gives_the_same_vectors(write: Write) -> None:
    expected = embed(write("clip_nomodules"))
    assert expected.shape == (len(TEXTS), PROJECTION)
    for name in ("clip_st6", "clip_text_projection", "clip_config_dict"):
        np.testing.assert_allclose(embed(write(name)), expected, atol=1e-5)


def test_the_first_end_token_is_pooled_and_what_follows_has_no_effect(write: Write) -> None:
    vectors = embed(write("clip_nomodules"))
    files = read_model_files(str(write("clip_text")))
    [ids] = TextTokenizer(files).encode_requests([([b"end"], EmbedParameters())])
    assert isinstance(ids, list)
    alone = load(files.folder).launch(TokenIds.join(ids)).result()
    np.testing.assert_allclose(vectors[TEXTS.index("end <|endoftext|> inside")], alone[0], atol=1e-5)


def test_the_sizes_are_those_of_the_text_tower(write: Write) -> None:
    files = read_model_files(str(write("clip_text")))
    assert (files.max_length, files.vocab_size, files.dimensions, files.pooling) == (77, 1500, PROJECTION, ())
    assert files.transformer.name == TOWER


@pytest.mark.parametrize("name", ["clip_text", "clip_text_projection"])
def test_the_reference_refuses_another_projection(name: str, write: Write) -> None:
    folder = write(name)
    reference = make_reference(str(folder), None, None, False)
    assert refuse_wrong(load(folder), reference, "float32", padded=True).largest < 1e-5
    file = read_model_files(str(folder)).transformer / "model.safetensors"
    state = load_file(file)
    save_file({**state, "text_projection.weight": state["text_projection.weight"].roll(1, 0).contiguous()}, file)
    with pytest.raises(Wrong, match="to the reference"):
        refuse_wrong(load(folder), reference, "float32")


@pytest.mark.parametrize(
    ("file", "change", "named"),
    [
        ("config.json", Path.unlink, "clip_text is not a model: it has no config.json"),
        ("config.json", cut_in_half, "config.json can't be read"),
        ("config.json", lambda file: edit_json(file, text_config="x"), "text_config in config.json is not an object"),
        ("config.json", lambda file: edit_json(file, projection_dim=0), "has no projection_dim"),
        ("config.json", lambda file: edit_json(file, projection_dim=7), "another shape of text_projection.weight"),
        ("model.safetensors", Path.unlink, "clip_text: the model has no weights"),
        ("model.safetensors", cut_in_half, "transformers could not load the model: SafetensorError"),
        ("tokenizer.json", Path.unlink, "clip_text has no tokenizer"),
        ("../adapter_config.json", lambda file: file.write_text("{}"), "clip_text is a LoRA adapter"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused_in_one_line(
    file: str, change: Callable[[Path], Any], named: str, write: Write
) -> None:
    folder = write("clip_text")
    change(folder / TOWER / file)
    assert named in refusal(folder)


def test_a_missing_weight_is_refused_by_its_name(write: Write) -> None:
    folder = write("clip_nomodules")
    state = load_file(folder / "model.safetensors")
    del state["text_model.final_layer_norm.bias"]
    save_file(state, folder / "model.safetensors")
    assert refusal(folder) == "clip_nomodules: the model's weights lack text_model.final_layer_norm.bias"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"modality_config": {"image": FEATURES["image"]}}, "modality_config has image; only text can be served"),
        (
            {"modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}},
            "modality_config takes another output than the text's features",
        ),
        ({"module_output_name": "token_embeddings"}, "module_output_name is not sentence_embedding"),
    ],
)
def test_another_output_of_the_model_is_refused(settings: dict[str, Any], named: str, write: Write) -> None:
    folder = write("clip_st6")
    edit_json(folder / "sentence_bert_config.json", **settings)
    assert named in refusal(folder)


def test_a_tower_without_a_projection_or_with_a_pooling_is_refused(write: Write) -> None:
    assert "a CLIPTextModel without its projection can't be served" in refusal(write("clip_no_projection"))
    assert "the modules Transformer, Pooling can't be served with a CLIP model" in refusal(write("clip_pooled"))
    folder = write("clip_text_projection")
    (folder / "modules.json").write_text(json.dumps([]))
    assert "a CLIPTextModel without its projection can't be served" in refusal(folder)


def test_sixteen_bits_stay_close(write: Write) -> None:
    folder = write("clip_text")
    exact = embed(folder)
    files = read_model_files(str(folder))
    settings = settings_of(folder).model_copy(update={"vllm": {"dtype": "bfloat16"}})
    [ids] = TextTokenizer(files).encode_requests([([text.encode() for text in TEXTS], EmbedParameters())])
    assert isinstance(ids, list)
    rough = create_executor(settings, files, "cpu").launch(TokenIds.join(ids)).result()
    assert torch.cosine_similarity(torch.tensor(exact), torch.tensor(rough)).min() > 0.99
