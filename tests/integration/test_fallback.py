"""A direct path that is wrong is found out when the model is loaded, and vLLM's scheduler serves instead."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vLLM's cache, as empty as in a new container."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def done(model: Path, cache: Path) -> "subprocess.CompletedProcess[str]":
    """A process that loaded the model with the direct path broken."""
    return load(model, cache, "wrong")


def load(model: Path, cache: Path, how: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tests.integration.broken_direct", str(model), how]
    environment = os.environ | {"VLLM_CACHE_ROOT": str(cache)}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)


def test_a_broken_direct_path_gives_a_warning_and_correct_vectors(
    done: "subprocess.CompletedProcess[str]", model: Path
) -> None:
    assert "the scheduler executor serves: a sentence of 1 tokens: cosine 0." in done.stderr
    check_vectors_of_the_scheduler(done, model)


def test_a_direct_path_that_raises_gives_a_warning_and_correct_vectors(model: Path, cache: Path) -> None:
    raised = load(model, cache, "raises")
    assert "the scheduler executor serves: the direct executor failed (ImportError)" in raised.stderr
    check_vectors_of_the_scheduler(raised, model)


def check_vectors_of_the_scheduler(done: "subprocess.CompletedProcess[str]", model: Path) -> None:
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["executor"] == "scheduler"
    transformer = AutoModel.from_pretrained(model, dtype=torch.float32)
    for length, vector in zip((5, 40), said["vectors"], strict=True):
        with torch.inference_mode():
            hidden = transformer(input_ids=torch.arange(1000, 1000 + length)[None]).last_hidden_state[0]
        np.testing.assert_allclose(vector, hidden.mean(0).numpy(), atol=1e-4)


def test_no_other_process_looks_at_the_models_class(done: "subprocess.CompletedProcess[str]", cache: Path) -> None:
    """vLLM would start one on a machine's first load, and keep what it saw."""
    assert done.returncode == 0, done.stderr[-3000:]
    assert not (cache / "modelinfos").exists()
