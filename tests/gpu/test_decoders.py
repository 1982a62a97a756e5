"""Causal models in the direct executor on a GPU: windows, soft caps and long texts, against transformers in float32."""

from pathlib import Path

import pytest
from tests.decoders import write_decoder
from tests.gpu.verified import verified

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", ["qwen3_emb", "qwen3_mean", "llama3_rope", "gemma3_causal", "bge_gemma2"])
def test_the_direct_executor_serves_it_with_the_vectors_of_transformers(name: str, tmp_path: Path) -> None:
    folder = write_decoder(tmp_path / name, name)
    report = verified(folder)
    # The last case is longer than every window.
    assert max(row["tokens"] for row in report["rows"]) == 2048
