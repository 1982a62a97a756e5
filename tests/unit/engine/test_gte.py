"""GTE's first layout is served without its code: its configuration in transformers' words, its weights as they are."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tests.broken_files import cut_in_half
from transformers import GteConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tritonembed_engine.errors import ModelError
from tritonembed_engine.model.checkpoint import checkpoint_files, names_of
from tritonembed_engine.model.files import read_model_files
from tritonembed_engine.model.hub_code import as_gte
from tritonembed_engine.model.vllm_folder import vllm_folder
from tritonembed_engine.reference.making import make_reference
from tritonembed_perf.families.registry import load_cases
from tritonembed_perf.families.writing import edit_json

CONFIG = {"hidden_size": 64, "num_attention_heads": 2, "rope_theta": 20000, "auto_map": {}}
NTK = {"type": "ntk", "factor": 8.0}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gte") / "gte_multilingual"
    load_cases()["gte_multilingual"].write(folder)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / written.name)


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        make_reference(str(folder), None, 16, False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_transformers_rope_has_the_frequencies_of_the_ntk_formula() -> None:
    config = GteConfig(**as_gte({**CONFIG, "rope_scaling": NTK}, "transformers"))
    found, scale = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]](config)
    steps = torch.arange(0, 32, 2).float() / 32
    expected = 1 / (20000 * 8) ** steps / 8 ** (2 / 32)
    assert scale == 1
    torch.testing.assert_close(found, expected)


def test_vllm_gets_the_scaling_of_the_code() -> None:
    changed = as_gte({**CONFIG, "rope_scaling": NTK}, "vllm")
    assert changed["rope_parameters"] == {"rope_type": "ntk", "factor": 8.0, "rope_theta": 20000.0}
    assert as_gte(CONFIG, "vllm")["rope_parameters"] == {"rope_type": "default", "rope_theta": 20000.0}


@pytest.mark.parametrize("name", ["gte_multilingual_prefixed", "gte_en_no_types"])
def test_the_reference_is_that_of_the_same_weights_in_transformers_own_layout(name: str, tmp_path: Path) -> None:
    case = load_cases()[name]
    assert case.reference is not None
    case.write(tmp_path / name)
    (tmp_path / "native").mkdir()
    case.reference(tmp_path / "native")
    theirs = SentenceTransformer(str(tmp_path / "native"), device="cpu", local_files_only=True)
    theirs.max_seq_length = 64
    reference = make_reference(str(tmp_path / name), None, 64, False)
    whole = [place for place, case in enumerate(reference.cases) if case.text is not None]
    ours = reference.vectors[whole] / np.linalg.norm(reference.vectors[whole], axis=1, keepdims=True)
    expected = theirs.encode([str(reference.cases[place].text) for place in whole], batch_size=1)
    np.testing.assert_allclose(ours, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["gte_multilingual", "gte_multilingual_prefixed"])
def test_vllm_gets_a_folder_without_code_and_without_a_prefix(name: str, tmp_path: Path) -> None:
    load_cases()[name].write(tmp_path / name)
    with vllm_folder(tmp_path / name) as folder:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        names = [tensor for file in checkpoint_files(folder) for tensor in names_of(file)]
    assert (config["model_type"], config["architectures"]) == ("gte", ["GteModel"])
    assert not {"auto_map", "rope_scaling", "rope_theta"} & set(config)
    assert not any(tensor.startswith("new.") for tensor in names)
    assert "encoder.layer.0.attention.qkv_proj.weight" in names


def test_code_in_the_folder_is_not_run_even_if_it_is_trusted(folder: Path) -> None:
    code = {"AutoConfig": "configuration.NewConfig", "AutoModel": "modeling.NewModel"}
    edit_json(folder / "config.json", auto_map=code)
    for file in ("configuration.py", "modeling.py"):
        (folder / file).write_text("raise SystemExit")
    assert np.isfinite(make_reference(str(folder), None, 16, True).vectors).all()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"layer_norm_type": "rms_norm"}, "the layer_norm_type 'rms_norm' is not served"),
        ({"logn_attention_scale": True}, "the logn_attention_scale 'True' is not served"),
        ({"position_embedding_type": "absolute"}, "the position_embedding_type 'absolute' is not served"),
        ({"pack_qkv": False}, "the pack_qkv 'False' is not served"),
        ({"hidden_act": "relu"}, "the hidden_act 'relu' is not served"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "the rope_scaling {'type': 'dynamic'"),
        ({"rope_scaling": {**NTK, "mixed_b": 0.5}}, "the rope_scaling {'type': 'ntk'"),
        ({"rope_scaling": {"type": "ntk"}}, "rope_scaling in config.json has no factor"),
        ({"intermediate_size": 32}, "the model's weights have another shape of layers.0.mlp"),
        ({"num_hidden_layers": 3}, "the model's weights lack layers.2."),
    ],
)
def test_what_differs_is_refused_by_its_name(changes: dict[str, Any], named: str, folder: Path) -> None:
    edit_json(folder / "config.json", **changes)
    assert named in refusal(folder)


@pytest.mark.parametrize(
    ("file", "change", "named"),
    [
        ("model.safetensors", Path.unlink, "gte_multilingual: the model has no weights"),
        ("model.safetensors", cut_in_half, "transformers can't load it for the reference: SafetensorError"),
        ("tokenizer.json", Path.unlink, "gte_multilingual has no tokenizer"),
        ("config.json", cut_in_half, "config.json can't be read"),
        ("adapter_config.json", lambda file: file.write_text("{}"), "gte_multilingual is a LoRA adapter"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused_in_one_line(
    file: str, change: Callable[[Path], Any], named: str, folder: Path
) -> None:
    change(folder / file)
    assert named in refusal(folder)


def test_the_maximum_is_that_of_config_json(folder: Path) -> None:
    edit_json(folder / "sentence_bert_config.json", max_seq_length=8192)
    assert read_model_files(str(folder)).max_length == 512
