"""Causal models run in the direct executor, without a KV cache. What it can't run, vLLM's scheduler serves."""

import json
from pathlib import Path

import numpy as np
import pytest
from tests.decoders import check_packed_batches, expected_vectors, write_decoder
from tests.integration.preloaded import Preloaded
from tests.integration.reference import cosines


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("qwen3_model", id="last token and Dense"),
        pytest.param("mistral_smallwindow", id="a window of 24 tokens"),
        pytest.param("bge_gemma2", id="soft caps and two groups of layers"),
    ],
)
def test_packed_batches_give_the_vectors_of_sentence_transformers(
    preloaded: Preloaded, tmp_path: Path, name: str
) -> None:
    check_packed_batches(preloaded, write_decoder(tmp_path / name, name), tmp_path)


def test_what_the_direct_executor_cannot_run_the_scheduler_serves_at_full_length(
    preloaded: Preloaded, tmp_path: Path
) -> None:
    folder = write_decoder(tmp_path / "qwen3_emb_basenames", "qwen3_emb_basenames")
    done = preloaded.run("tests.integration.broken_decoder", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["reasons"] == {
        "as it is": "",
        "shared": "layers share keys and values through vLLM's cache",
        "rounded": "keys and values are rounded in vLLM's cache (kv_cache_dtype)",
        "backend": "causal attention without a cache is not known of OtherBackend",
        "attention": "its attention is not only of the kinds that need no cache here (Other)",
    }
    assert "the scheduler executor serves: a sentence of 2 tokens: cosine" in done.stderr
    assert found["executor"] == "scheduler"
    assert found["loads"] == [1024, None]
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    sentences = [np.arange(300, 300 + n, dtype=np.int32) % rows for n in (5, 1500)]
    assert cosines(np.array(found["vectors"]), expected_vectors(folder, sentences)).min() >= 0.99999
