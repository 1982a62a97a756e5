"""A wrong direct executor is detected when the model is loaded, and vLLM's scheduler serves instead."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.integration.preloaded import Preloaded
from transformers import AutoModel


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vLLM's cache, empty as in a new container."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def done(preloaded: Preloaded, model: Path, cache: Path) -> "subprocess.CompletedProcess[str]":
    """A process that loaded the model and broke the direct executor in two ways."""
    return preloaded.run("tests.integration.broken_direct", model, VLLM_CACHE_ROOT=str(cache))


def test_a_broken_direct_path_gives_a_warning_and_correct_vectors(
    done: "subprocess.CompletedProcess[str]", model: Path
) -> None:
    assert "the scheduler executor serves: a sentence of 1 tokens: cosine 0." in done.stderr
    check_vectors_of_the_scheduler(done, model, "one_position_off")


def test_a_direct_path_that_raises_gives_a_warning_and_correct_vectors(
    done: "subprocess.CompletedProcess[str]", model: Path
) -> None:
    assert "the scheduler executor serves: the direct executor failed (ImportError)" in done.stderr
    check_vectors_of_the_scheduler(done, model, "raises")


def check_vectors_of_the_scheduler(done: "subprocess.CompletedProcess[str]", model: Path, how: str) -> None:
    assert done.returncode == 0, done.stderr[-3000:]
    [said] = [line for line in map(json.loads, done.stdout.splitlines()[-2:]) if line["how"] == how]
    assert said["executor"] == "scheduler"
    transformer = AutoModel.from_pretrained(model, dtype=torch.float32)
    for length, vector in zip((5, 40), said["vectors"], strict=True):
        with torch.inference_mode():
            hidden = transformer(input_ids=torch.arange(1000, 1000 + length)[None]).last_hidden_state[0]
        np.testing.assert_allclose(vector, hidden.mean(0).numpy(), atol=1e-4)


def test_no_other_process_inspects_the_models_class(done: "subprocess.CompletedProcess[str]", cache: Path) -> None:
    """vLLM would start such a process on a machine's first load, and cache its result."""
    assert done.returncode == 0, done.stderr[-3000:]
    assert not (cache / "modelinfos").exists()
