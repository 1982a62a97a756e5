"""The kernels in the layers of models that vLLM loaded: the same hidden states as vLLM's own layers give."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.decoders import write_decoder

from tritonembed_perf.families.registry import load_cases

BERT = ["BertLayer", "BertOutput", "BertSelfAttention", "BertSelfOutput"]
ROTARY_BERT = ["BertWithRopeAttention", "BertWithRopeBlock"]
MODERNBERT = ["ModernBertAttention", "ModernBertEncoderLayer", "ModernBertLayer", "ModernBertMLP"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("bert_cls", ["BertEmbedding", *BERT]),
        ("bge_m3", [*BERT, "RobertaEmbedding"]),
        ("qwen3_emb", ["Qwen3Attention", "Qwen3DecoderLayer"]),
        ("gte_qwen2", ["Qwen2Attention", "Qwen2DecoderLayer"]),
        ("llama3_rope", ["LlamaAttention", "LlamaDecoderLayer"]),
        ("mistral_smallwindow", ["LlamaAttention", "LlamaDecoderLayer"]),
        ("modernbert_gte", MODERNBERT),
        ("modernbert_biases", MODERNBERT),
        ("gte_multilingual", ROTARY_BERT),
        ("arctic_m_long", ROTARY_BERT),
    ],
)
def test_hidden_states_are_those_of_vllms_layers(name: str, layers: list[str], tmp_path: Path) -> None:
    folder = tmp_path / name
    if name in ("bert_cls", "bge_m3", "arctic_m_long"):
        folder.mkdir()
        load_cases()[name].write(folder)
    else:
        write_decoder(folder, name, 512)
    done = subprocess.run(
        [sys.executable, "-m", "tests.slow.computed_kernels", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["replaced"] == layers
    assert len(found["differences"]) == 3
    assert max(found["differences"]) < 3e-5
    assert len(found["pooled"]) == 6
    assert max(found["pooled"]) < 3e-5
