"""Which layers of a model our kernels replace. Layers that they can't serve are left to vLLM."""

import json
import shutil
from pathlib import Path

import pytest
from tests.integration.preloaded import Preloaded

COMMON = ["BertEmbedding", "BertLayer", "BertOutput", "BertSelfAttention", "BertSelfOutput"]


@pytest.mark.parametrize(("activation", "with_gelu"), [("gelu", ["BertIntermediate"]), ("gelu_new", [])])
def test_kernels_replace_the_layers_that_they_serve(
    preloaded: Preloaded, model: Path, tmp_path: Path, activation: str, with_gelu: list[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": activation}))
    done = preloaded.run("tests.integration.installed_kernels", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "as it is": sorted(COMMON + with_gelu),
        "without a weight": sorted(COMMON + with_gelu),
        "after a failure": [],
    }
    assert "kernels: embed_layer_norm in 1, attention in 2, add_layer_norm in 4" in done.stderr
