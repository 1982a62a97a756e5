"""Checkpoints of GTE and NomicBERT that transformers 5 saves get the hub's names for vLLM, without loss."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.models import ModelShelf
from transformers import AutoConfig, AutoModel

from tritonembed_engine.model.files import read_model_files
from tritonembed_engine.model.vllm_folder import hub_config, is_native, vllm_folder
from tritonembed_engine.reference import oracle
from tritonembed_engine.reference.cases import Case


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("gte", {"encoder.layer.1.attention.qkv_proj.weight", "encoder.layer.1.mlp.up_gate_proj.weight"}),
        ("nomic_bert", {"encoder.layers.1.attn.Wqkv.weight", "encoder.layers.1.mlp.fc11.weight", "emb_ln.bias"}),
    ],
)
def test_a_native_checkpoint_gets_the_hubs_names(kind: str, expected: set[str], tmp_path: Path) -> None:
    shape = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    model = AutoModel.from_config(AutoConfig.for_model(kind, vocab_size=50, **shape))
    model.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert is_native(config)
    assert not is_native({**config, "auto_map": {}})
    with vllm_folder(tmp_path / "saved") as folder:
        names = load_file(folder / "model.safetensors")
        told = json.loads((folder / "config.json").read_text())
    assert expected <= set(names)
    assert sum(tensor.numel() for tensor in names.values()) == sum(p.numel() for p in model.parameters())
    assert told == {**told, **hub_config(config)}


def test_a_large_models_reference_is_float32_though_its_weights_stay_as_they_are(
    shelf: ModelShelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Converting one layer at a time gives the same vectors as the whole model in float32."""
    folder = shelf("bert")
    copy = tmp_path / "bfloat16"
    AutoModel.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(copy)
    for file in folder.iterdir():
        if file.is_file() and not (copy / file.name).exists():
            (copy / file.name).write_bytes(file.read_bytes())
    (copy / "1_Pooling").mkdir()
    (copy / "1_Pooling" / "config.json").write_bytes((folder / "1_Pooling" / "config.json").read_bytes())
    files: Any = read_model_files(str(copy))
    cases = [Case("text", np.array([101, 7592, 2088, 102], dtype="<i4").tobytes())]
    whole = oracle.Oracle(str(copy), None, files).embed(cases)
    monkeypatch.setattr(oracle, "MOST_IN_FLOAT32", 0)
    by_layer = oracle.Oracle(str(copy), None, files)
    assert next(by_layer._model.parameters()).dtype == torch.bfloat16
    assert np.array_equal(by_layer.embed(cases), whole)
    assert next(by_layer._model.parameters()).dtype == torch.bfloat16
