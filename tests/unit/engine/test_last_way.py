"""If every executor's vectors are wrong, the start fails with a list of what was tried."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.models import ModelShelf
from tests.unit.engine.test_reference import executor, reference

from tritonembed_engine import factory, vllm_factory
from tritonembed_engine.errors import ModelError
from tritonembed_engine.factory import choose_reference
from tritonembed_engine.model.files import read_model_files
from tritonembed_engine.model.modules import Pooling
from tritonembed_engine.reference.check import Gate, let_through
from tritonembed_engine.settings import EngineSettings, ModelSettings


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


@pytest.mark.parametrize(
    ("pooling", "broken", "tried"),
    [
        ("cls", [], [(True, True)]),
        ("cls", ["pooled_rows"], [(True, True), (False, True)]),
        ("cls", ["attention"], [(True, True), (False, True), (False, False)]),
        ("mean", ["attention"], [(False, True), (False, False)]),
    ],
)
def test_kernels_that_fail_are_left_out_step_by_step(
    monkeypatch: pytest.MonkeyPatch, pooling: str, broken: list[str], tried: list[tuple[bool, bool]]
) -> None:
    """Pairs: whether the last layer may compute pooled tokens alone, and whether our attention serves."""
    seen: list[tuple[bool, bool]] = []

    def build(_: object, engine: EngineSettings, *__: object) -> SimpleNamespace:
        seen.append((engine.kernels.pooled_rows, engine.kernels.attention))
        if any(getattr(engine.kernels, name) for name in broken):
            raise RuntimeError("a kernel")
        return SimpleNamespace(captured=[], uncaptured=[])

    monkeypatch.setattr(vllm_factory, "build_direct_on_gpu", build)
    monkeypatch.setattr(vllm_factory, "check_agreement", lambda *_: 0.0)
    model, files = SimpleNamespace(device=torch.device("cuda")), SimpleNamespace(pooling=[Pooling(pooling)])
    scheduler = SimpleNamespace(max_batch_tokens=64, dimensions=8)
    gate = Gate(None, "bfloat16", False)
    engine = EngineSettings.model_validate({"kernels": {"pooled_rows": True}})
    vllm_factory._direct_executor(model, engine, files, scheduler, None, gate, None)  # type: ignore[arg-type]
    assert seen == tried
