"""`tritonembed-manager replica` refuses, in one line, what it would notice only after a long start."""

import shutil

from tests.integration.test_replica import START_LIMIT_S


def test_a_folder_without_weights_is_reported_in_one_line_without_paths(replica, model, tmp_path):
    folder = tmp_path / "my model"
    shutil.copytree(model, folder)
    (folder / "model.safetensors").unlink()
    code, lines = replica("--model", folder, "--device=cpu", "--workers=1").ended(limit=START_LIMIT_S)
    assert code == 2
    assert lines[-1].startswith("tritonembed-manager: my model: ")
    assert "the model has no weights" in lines[-1]
    assert str(tmp_path) not in lines[-1]


def test_half_of_the_weights_is_reported_in_one_line_without_paths(replica, model, tmp_path):
    folder = tmp_path / "my model"
    shutil.copytree(model, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    code, lines = replica("--model", folder, "--device=cpu", "--workers=1").ended(limit=START_LIMIT_S)
    assert code == 2
    assert lines[-1].startswith("tritonembed-manager: my model: ")
    assert "incomplete metadata, file not fully covered" in lines[-1]
    assert str(tmp_path) not in lines[-1]


def test_a_length_that_the_model_does_not_accept_stops_start_up_before_triton(replica, model):
    code, lines = replica("--model", model, "--device=cpu", "--max-model-len=100k").ended(limit=60)
    assert code == 2
    assert lines == ["tritonembed-manager: --max-model-len: 100000 tokens, but bert takes at most 64"]


def test_a_misspelt_argument_stops_start_up_with_its_name(replica, model):
    code, lines = replica("--model", model, "--device=cpu", "--max-model-length=512").ended(limit=60)
    assert code == 2
    assert lines == ["tritonembed-manager: unknown option --max-model-length; did you mean --max-model-len?"]
