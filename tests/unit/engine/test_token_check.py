"""At load, weights and vectors of tokens are compared with the reference, and wrong ones stop the start."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tritonembed_engine.errors import ModelError
from tritonembed_engine.executors.building import heads_of
from tritonembed_engine.executors.loading import filler_id
from tritonembed_engine.executors.pooling import Pooler
from tritonembed_engine.executors.transformers_executor import (
    GROUPING,
    TransformersExecutor,
    load_encoder,
)
from tritonembed_engine.factory import create_executor
from tritonembed_engine.model.files import read_model_files
from tritonembed_engine.model.steps import Steps
from tritonembed_engine.ragged import Ragged
from tritonembed_engine.reference.cases import load
from tritonembed_engine.reference.check import Gate, Wrong
from tritonembed_engine.reference.making import make_reference
from tritonembed_engine.settings import ModelSettings
from tritonembed_perf.families.registry import load_cases

NAMES = {
    "bge_m3": ("sparse", "multi_vector"),
    "splade_distilbert": ("sparse",),
    "colbert_hf": ("multi_vector",),
    "colbert_two_dense": ("multi_vector",),
}


def executor_of(folder: Path) -> TransformersExecutor:
    files = read_model_files(str(folder))
    settings = ModelSettings.model_validate({"model": str(folder), "engine": {"executor": "transformers"}})
    model, pooler = load_encoder(settings, files, "cpu"), Pooler(files.pooling, Steps(files.steps))
    return TransformersExecutor(model, pooler, 4096, 64, filler_id(files), GROUPING["cpu"], heads_of(files))


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_holds_every_output_per_token(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    load_cases()[name].write(folder)
    made = make_reference(str(folder), None, None, False)
    made.save(tmp_path / "reference.npz")
    reference = load(tmp_path / "reference.npz")
    assert tuple(reference.token_outputs) == NAMES[name]
    executor = executor_of(folder)
    Gate(reference, "float32", False).check(executor)
    for output, expected in reference.token_outputs.items():
        rows = expected.rows.copy()
        if output == "sparse":
            rows["weight"][: len(rows) // 2] *= 1.2
        else:
            rows[3] = np.roll(rows[3], 1)
        wrong = replace(reference, token_outputs={output: Ragged(expected.counts, rows)})
        with pytest.raises(Wrong, match=rf"the output {output}: cosine -?\d.* to the reference"):
            Gate(wrong, "float32", False).check(executor)
        # In 16 bits and with quantized weights the mean counts, to which one token adds little.
        Gate(wrong, "bfloat16", False).check(executor)
        Gate(wrong, "float32", True).check(executor)
        if output == "sparse":
            rows["id"] = np.roll(rows["id"], 7)
        else:
            rows = np.roll(rows, 1, axis=0)
        wrong = replace(reference, token_outputs={output: Ragged(expected.counts, rows)})
        with pytest.raises(Wrong, match=rf"the output {output}: on average, cosine -?\d.* to the reference"):
            Gate(wrong, "bfloat16", False).check(executor)


def test_a_model_whose_head_serves_wrongly_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.mkdir()
    load_cases()["bge_m3"].write(right)
    make_reference(str(right), None, None, False).save(tmp_path / "reference.npz")
    shutil.copytree(right, wrong)
    state = torch.load(wrong / "colbert_linear.pt", weights_only=True)
    torch.save({**state, "bias": state["bias"] + 0.3}, wrong / "colbert_linear.pt")
    engine = {"executor": "transformers", "reference": str(tmp_path / "reference.npz")}
    for folder in (right, wrong):
        settings = ModelSettings.model_validate({"model": str(folder), "engine": engine})
        files = read_model_files(str(folder))
        if folder == right:
            create_executor(settings, files, "cpu").close()
        else:
            with pytest.raises(ModelError, match="would be wrong: transformers executor: the output multi_vec"):
                create_executor(settings, files, "cpu")
