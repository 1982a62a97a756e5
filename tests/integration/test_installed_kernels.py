"""Which layers of a model our kernels replace, and that what they can't serve is left to vLLM."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMMON = ["BertEmbedding", "BertOutput", "BertSelfAttention", "BertSelfOutput"]


@pytest.mark.parametrize(("activation", "with_gelu"), [("gelu", ["BertIntermediate"]), ("gelu_new", [])])
def test_kernels_are_put_into_the_layers_that_they_serve(
    model: Path, tmp_path: Path, activation: str, with_gelu: list[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": activation}))
    command = [sys.executable, "-m", "tests.integration.installed_kernels", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "as it is": sorted(COMMON + with_gelu),
        "without a weight": sorted(COMMON + with_gelu),
        "after a failure": [],
    }
    assert "kernels: embed_layer_norm in 1, attention in 2, add_layer_norm in 4" in done.stderr
