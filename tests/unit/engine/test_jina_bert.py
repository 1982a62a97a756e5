"""JinaBERT v2 gives the vectors of a second, naive implementation; variants and broken folders are refused by name."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.broken_files import cut_in_half
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

from tritonembed_engine.errors import ModelError
from tritonembed_engine.executors import jina_bert
from tritonembed_engine.factory import create_executor
from tritonembed_engine.model.files import read_model_files
from tritonembed_engine.reference.check import Wrong, refuse_wrong
from tritonembed_engine.reference.making import make_reference
from tritonembed_engine.settings import ModelSettings
from tritonembed_engine.token_ids import TokenIds
from tritonembed_perf.families.jina_naive import naive_hidden, naive_slope
from tritonembed_perf.families.jina_v2 import jina
from tritonembed_perf.families.registry import load_cases
from tritonembed_perf.families.writing import edit_json

LENGTHS = (2, 3, 17, 40, 5, 61)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    load_cases()["jina_v2"].write(tmp_path / "jina_v2")
    return tmp_path / "jina_v2"


def load(folder: Path, **vllm: Any) -> Any:
    settings = ModelSettings.model_validate({"model": str(folder), "vllm": vllm, "engine": {"reference": "off"}})
    return create_executor(settings, read_model_files(str(folder)), "cpu")


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def sentences() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 30_522, (length,), generator=generator) for length in LENGTHS]


def naive_means(folder: Path) -> torch.Tensor:
    config = SimpleNamespace(**jina().config)
    tensors = {name: value.double() for name, value in load_file(folder / "model.safetensors").items()}
    return torch.stack([naive_hidden(tensors, config, ids).mean(0) for ids in sentences()])


def embed(executor: Any) -> torch.Tensor:
    ids = TokenIds.join([ids.numpy().astype("<i4").tobytes() for ids in sentences()])
    return torch.from_numpy(executor.launch(ids).result())


@pytest.mark.parametrize("most_bias", [1 << 24, 1])
def test_vectors_are_those_of_the_naive_model_with_padding_and_in_blocks_of_queries(
    most_bias: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jina_bert, "MOST_BIAS", most_bias)
    executor = load(folder)
    assert executor.name == "transformers"
    expected = naive_means(folder).float()
    torch.testing.assert_close(embed(executor), expected, atol=1e-5, rtol=1e-4)


def test_the_bias_of_a_long_text_is_made_in_blocks() -> None:
    bias = jina_bert.Bias(torch.tensor(jina_bert.slopes_of(12)), None, torch.Size((1, 8192)), torch.float32)
    first, end, block = next(iter(bias.blocks(8192)))
    assert block.numel() <= jina_bert.MOST_BIAS
    assert (first, block.shape) == (0, (1, 12, end, 8192))


@pytest.mark.parametrize("heads", [1, 2, 6, 8, 12, 16, 20])
def test_slopes_are_those_of_the_naive_model_and_of_bloom(heads: int) -> None:
    assert jina_bert.slopes_of(heads) == pytest.approx([naive_slope(head, heads) for head in range(heads)])
    bloom = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)[:, 0, 1]
    assert jina_bert.slopes_of(heads) == pytest.approx(bloom.tolist())


def test_the_reference_accepts_the_model_and_refuses_swapped_halves_of_the_gate(folder: Path) -> None:
    reference = make_reference(str(folder), None, 64, False)
    assert refuse_wrong(load(folder, max_model_len=64), reference, "float32", padded=True).largest < 1e-5
    state = load_file(folder / "model.safetensors")
    name = "encoder.layer.1.mlp.gated_layers.weight"
    save_file({**state, name: torch.cat(state[name].chunk(2)[::-1])}, folder / "model.safetensors")
    with pytest.raises(Wrong, match="to the reference"):
        refuse_wrong(load(folder, max_model_len=64), reference, "float32")


def test_sixteen_bits_stay_close(folder: Path) -> None:
    rough = embed(load(folder, dtype="bfloat16"))
    assert torch.cosine_similarity(rough, naive_means(folder).float()).min() > 0.999


def test_the_models_own_code_is_not_run(folder: Path) -> None:
    (folder / "modeling_bert.py").write_text("raise SystemExit")
    code = {"AutoConfig": "modeling_bert.JinaBertConfig", "AutoModel": "modeling_bert.JinaBertModel"}
    edit_json(folder / "config.json", auto_map=code)
    make_reference(str(folder), None, 16, False)
    assert np.isfinite(embed(load(folder)).numpy()).all()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"position_embedding_type": "absolute"}, "the position_embedding_type 'absolute' is not served"),
        ({"feed_forward_type": "reglu"}, "the feed_forward_type 'reglu' is not served"),
        ({"feed_forward_type": "original"}, "the feed_forward_type 'original' is not served"),
        ({"auto_map": {"AutoModel": "jinaai/jina-bert-v2-qk-post-norm--m.J"}}, "normalised queries and keys"),
        ({"num_attention_heads": 7}, "num_attention_heads in config.json does not divide hidden_size"),
        ({"intermediate_size": 32}, "another shape of encoder.layer.0.mlp.gated_layers.weight"),
        ({"num_hidden_layers": 3}, "the model's weights lack encoder.layer.2."),
        ({"num_hidden_layers": 1}, "JinaBERT has no place for the weights encoder.layer.1."),
    ],
)
def test_a_variant_is_refused_by_the_key_or_the_weights(changes: dict[str, Any], named: str, folder: Path) -> None:
    edit_json(folder / "config.json", **changes)
    assert named in refusal(folder)


@pytest.mark.parametrize(
    ("file", "change", "named"),
    [
        ("model.safetensors", Path.unlink, "jina_v2: the model has no weights"),
        ("model.safetensors", cut_in_half, "could not load the model: SafetensorError"),
        ("config.json", Path.unlink, "jina_v2 is not a model: it has no config.json"),
        ("tokenizer.json", Path.unlink, "jina_v2 has no tokenizer"),
        ("adapter_config.json", lambda file: file.write_text("{}"), "jina_v2 is a LoRA adapter"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused_in_one_line(
    file: str, change: Callable[[Path], Any], named: str, folder: Path
) -> None:
    change(folder / file)
    assert named in refusal(folder)
