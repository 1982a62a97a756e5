"""LoRA adapters in the direct executor, over models that vLLM loads, against merged weights in transformers."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.integration.adapter_vectors import ADAPTERS
from tests.merged import cosines, hidden_of, merged_model
from tests.models import ModelShelf

from tritonembed_engine.model.files import read_model_files
from tritonembed_engine.model.modules import Pooling
from tritonembed_perf.models import write_adapter

TARGETS = {
    "bert": ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"],
    "roberta": ["query", "value"],
    "xlm-roberta": ["key", "intermediate.dense"],
    "modernbert": ["Wqkv", "Wi", "Wo"],
    "qwen3": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
"""By model: layers that vLLM has by themselves, and such that it stacks."""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", TARGETS)
def test_one_batch_holds_the_vectors_of_a_model_and_its_adapters(kind: str, shelf: ModelShelf, tmp_path: Path) -> None:
    base = shelf(kind)
    law, med = (
        write_adapter(tmp_path / name, base, TARGETS[kind], seed=seed, rank_pattern={TARGETS[kind][0]: 3})
        for seed, name in enumerate(("law", "med"))
    )
    out = tmp_path / "vectors.npz"
    command = [sys.executable, "-m", "tests.integration.adapter_vectors", str(base), str(law), str(med), str(out)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600, env=dict(os.environ), check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    for name in ("law", "med"):
        assert f"direct (adapter {name}) executor: lowest cosine 1.000000" in ran.stderr

    files = read_model_files(str(base))
    with np.load(out) as found:
        mixed, alone = found["mixed"], found["base"]
        sentences = np.split(found["ids"], np.cumsum(found["lengths"])[:-1])
    models = {"law": merged_model(base, law), "med": merged_model(base, med)}
    for row, sentence in enumerate(sentences):
        adapter = ADAPTERS[row % len(ADAPTERS)]
        if adapter is None:
            np.testing.assert_allclose(mixed[row], alone[row], rtol=0, atol=1e-5)
            continue
        hidden = hidden_of(models[adapter], sentence)
        [pooling] = files.pooling
        expected = {Pooling.MEAN: hidden.mean(0), Pooling.CLS: hidden[0], Pooling.LAST_TOKEN: hidden[-1]}[pooling]
        assert cosines(mixed[row : row + 1], expected[None])[0] >= 0.99999
        assert cosines(alone[row : row + 1], expected[None])[0] < 0.99
