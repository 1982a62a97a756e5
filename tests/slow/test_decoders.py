"""More decoders, causal and bidirectional, in packed batches; and one that needs more KV cache than there is."""

import re
from pathlib import Path

import pytest
from tests.decoders import check_packed_batches, write_decoder
from tests.integration.preloaded import Preloaded, preloaded_python
from tests.models import ModelShelf

from tritonembed_perf.families.registry import load_cases


@pytest.fixture(scope="module")
def preloaded():  # type: ignore[no-untyped-def]
    with preloaded_python() as started:
        yield started


@pytest.mark.parametrize(
    "name",
    [
        *("qwen3_emb", "qwen3_wmean", "qwen3_bidirectional", "qwen2_causal", "stella_15b"),
        *("llama_causal_mean", "llama3_rope", "e5_mistral", "gemma3_causal", "embeddinggemma"),
    ],
)
def test_packed_batches_give_the_vectors_of_sentence_transformers(
    preloaded: Preloaded, tmp_path: Path, name: str
) -> None:
    check_packed_batches(preloaded, write_decoder(tmp_path / name, name), tmp_path)


def test_a_model_whose_kv_cache_would_not_fit_serves_as_it_comes(preloaded: Preloaded, tmp_path: Path) -> None:
    """7 GiB for its 32,768 tokens, where vLLM has 1."""
    folder = tmp_path / "qwen3_realkv"
    folder.mkdir()
    load_cases()["qwen3_realkv"].write(folder)
    check_packed_batches(preloaded, folder, tmp_path)


def test_both_executors_are_measured_in_turn(preloaded: Preloaded, shelf: ModelShelf) -> None:
    module, both = "tritonembed_perf.scripts.engine", "direct,scheduler"
    done = preloaded.run(module, "speed", shelf("qwen3"), "--executor", both)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = re.findall(r"^ +(\d+ x \d+) .* sentences/s .* scheduler   the first has [\d.]+ x$", done.stdout, re.M)
    assert rows == ["64 x 50", "16 x 50", "1 x 50", "1 x 10"]
