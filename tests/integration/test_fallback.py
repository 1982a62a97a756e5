"""A direct path that is wrong is found out when the model is loaded, and vLLM's scheduler serves instead."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel


def test_a_broken_direct_path_gives_a_warning_and_correct_vectors(model: Path) -> None:
    command = [sys.executable, "-m", "tests.integration.broken_direct", str(model)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["executor"] == "scheduler"
    assert "the scheduler executor serves: a sentence of 1 tokens: cosine 0." in done.stderr
    transformer = AutoModel.from_pretrained(model, dtype=torch.float32)
    for length, vector in zip((5, 40), said["vectors"], strict=True):
        with torch.inference_mode():
            hidden = transformer(input_ids=torch.arange(1000, 1000 + length)[None]).last_hidden_state[0]
        np.testing.assert_allclose(vector, hidden.mean(0).numpy(), atol=1e-4)
