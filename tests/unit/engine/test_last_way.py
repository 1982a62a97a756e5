"""If every executor's vectors are wrong, the start fails with a list of what was tried."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.models import ModelShelf
from tests.unit.engine.test_reference import executor, reference

from tritonembed_engine import factory
from tritonembed_engine.errors import ModelError
from tritonembed_engine.factory import choose_reference
from tritonembed_engine.model.files import read_model_files
from tritonembed_engine.reference.check import Gate, let_through
from tritonembed_engine.settings import ModelSettings


def test_wrong_vectors_end_the_start_with_all_that_was_tried(shelf: ModelShelf) -> None:
    files = read_model_files(str(shelf("bert")))
    right = reference()
    gate = Gate(right, "float32", False)
    assert let_through(executor(right.vectors), gate, files.name, []) is not None
    wrong = executor(np.roll(right.vectors, 1, axis=1))
    wrong.name = "scheduler"
    with pytest.raises(ModelError) as caught:
        let_through(wrong, gate, files.name, ["direct executor: case 3: cosine 0.5"])
    message = str(caught.value)
    assert message.startswith("bert is not served, because its vectors would be wrong: direct executor: case 3")
    assert "scheduler executor: case" in message
    assert "below 0.999900" in message


def test_deterministic_is_one_sentence_per_batch(shelf: ModelShelf, monkeypatch: pytest.MonkeyPatch) -> None:
    files = read_model_files(str(shelf("bert")))
    monkeypatch.setattr(factory, "_create", lambda *_: executor(reference().vectors))
    for deterministic, most in ((True, 1), (False, 64)):
        settings = ModelSettings.model_validate({"model": "m", "engine": {"deterministic": deterministic}})
        assert factory.create_executor(settings, files, "cpu").max_batch_sentences == most


def test_no_reference_is_made_of_quantized_weights(shelf: ModelShelf, tmp_path: Path) -> None:
    folder = tmp_path / "quantized"
    shutil.copytree(shelf("bert"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    files = read_model_files(str(folder))
    with pytest.raises(ModelError, match=r"--reference FILE.*--no-reference"):
        choose_reference(ModelSettings(model=str(folder)), files)
    off = ModelSettings.model_validate({"model": str(folder), "engine": {"reference": "off"}})
    assert choose_reference(off, files) is None
