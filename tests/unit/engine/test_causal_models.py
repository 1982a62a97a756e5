"""Which models are causal, which executor is tried with them, and for which lengths vLLM has a cache."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.models import ModelShelf
from tests.unit.engine.test_reference import executor, reference

from tritonembed_engine import factory, vllm_factory
from tritonembed_engine.errors import ModelError
from tritonembed_engine.executors import loading, vllm_internals
from tritonembed_engine.executors.loading import LONGEST_IN_CACHE, longest_in_vllm, tries_direct
from tritonembed_engine.executors.vllm_internals import DirectUnavailable, Exchanged
from tritonembed_engine.model.architecture import is_causal
from tritonembed_engine.model.files import ModelFiles, read_model_files
from tritonembed_engine.settings import ModelSettings

LONG = 32_768


@pytest.mark.parametrize(
    ("name", "more", "expected"),
    [
        ("Qwen3ForCausalLM", {}, True),
        ("Qwen3Model", {}, True),
        ("Qwen2Model", {}, True),
        ("MistralModel", {}, True),
        ("LlamaModel", {}, True),
        ("Gemma2Model", {}, True),
        ("Gemma3TextModel", {"use_bidirectional_attention": False}, True),
        ("Gemma3TextModel", {"use_bidirectional_attention": True}, False),
        ("Qwen2ForCausalLM", {"is_causal": False}, False),
        ("Qwen2Model", {"is_causal": False}, False),
        ("LlamaBidirectionalModel", {}, False),
        ("VoyageQwen3BidirectionalEmbedModel", {}, False),
        ("BertModel", {}, False),
        ("EuroBertModel", {}, False),
    ],
)
def test_causal_is_what_config_json_shows(name: str, more: dict[str, Any], expected: bool) -> None:
    assert is_causal({"architectures": [name], **more}) is expected


def test_a_model_without_architectures_is_not_causal() -> None:
    assert not is_causal({"model_type": "bert"})


@pytest.fixture
def files(shelf: ModelShelf) -> ModelFiles:
    return replace(read_model_files(str(shelf("qwen3"))), max_length=LONG)


def settings_with(executor: str) -> ModelSettings:
    return ModelSettings.model_validate({"model": "m", "engine": {"executor": executor, "reference": "off"}})


@pytest.mark.parametrize(
    ("chosen", "causal", "tried"),
    [("auto", True, True), ("auto", False, True), ("direct", True, True), ("scheduler", True, False)],
)
def test_vllm_has_no_cache_for_long_texts_that_the_direct_executor_is_to_run(
    files: ModelFiles, chosen: str, causal: bool, tried: bool
) -> None:
    given = replace(files, is_causal=causal)
    assert tries_direct(settings_with(chosen)) is tried
    expected = LONGEST_IN_CACHE if tried and causal else LONG
    assert longest_in_vllm(settings_with(chosen), given) == expected


@pytest.mark.parametrize("kind", ["tensor", "pipeline"])
def test_a_model_on_several_gpus_gets_the_whole_cache_at_once(files: ModelFiles, kind: str) -> None:
    settings = settings_with("auto").model_copy(update={"vllm": {f"{kind}_parallel_size": 2}})
    assert longest_in_vllm(settings, files) == LONG


def test_on_a_gpu_the_cache_is_small_and_holds_the_longest_text_of_the_check(files: ModelFiles) -> None:
    config = json.loads((files.transformer / "config.json").read_text())
    width = config["num_key_value_heads"] * config["head_dim"]
    per_token = 2 * config["num_hidden_layers"] * width * 4
    found = loading._arguments(settings_with("auto"), files, "cuda", LONGEST_IN_CACHE)
    assert found["max_model_len"] == LONGEST_IN_CACHE
    assert 2 * LONGEST_IN_CACHE * per_token <= found["kv_cache_memory_bytes"] <= 8 * LONGEST_IN_CACHE * per_token
    given = settings_with("auto").model_copy(update={"vllm": {"kv_cache_memory_bytes": 7}})
    assert loading._arguments(given, files, "cuda", LONGEST_IN_CACHE)["kv_cache_memory_bytes"] == 7


@pytest.mark.parametrize(
    ("executor", "device", "longest"), [("scheduler", "cuda", LONG), ("auto", "cuda", None), ("auto", "cpu", 1024)]
)
def test_otherwise_the_cache_is_vllms_own(files: ModelFiles, executor: str, device: str, longest: int | None) -> None:
    assert "kv_cache_memory_bytes" not in loading._arguments(settings_with(executor), files, device, longest)


def test_a_short_model_that_is_refused_on_a_gpu_gets_its_whole_cache(
    files: ModelFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    vllm = FakeVllm(monkeypatch, refuse)
    factory.create_executor(settings_with("auto"), replace(files, max_length=64), "cuda")
    assert vllm.loads == [64, None]


def test_a_model_whose_texts_need_more_gets_the_whole_cache(
    files: ModelFiles, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[dict[str, Any]] = []

    def make(**arguments: Any) -> object:
        asked.append(arguments)
        if arguments.get("kv_cache_memory_bytes"):
            raise ValueError("4 GiB KV cache is needed, which is larger than the available KV cache memory")
        return object()

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=make))
    monkeypatch.setitem(sys.modules, "vllm.config", SimpleNamespace(PoolerConfig=dict))
    loading.load_vllm(settings_with("auto"), files, "cuda", LONGEST_IN_CACHE)
    assert [arguments["max_model_len"] for arguments in asked] == [LONGEST_IN_CACHE, LONG]
    assert "kv_cache_memory_bytes" not in asked[1]
    assert "vLLM gets its whole cache" in caplog.text
    # Without the small cache the same error ends the start.
    with pytest.raises(ModelError, match="KV cache is needed"):
        loading.load_vllm(
            settings_with("auto").model_copy(update={"vllm": {"kv_cache_memory_bytes": 7}}), files, "cuda"
        )


def test_a_shorter_maximum_stays(files: ModelFiles) -> None:
    assert longest_in_vllm(settings_with("auto"), replace(files, max_length=64)) == 64


def test_positions_that_depend_on_the_maximum_keep_it(files: ModelFiles, tmp_path: Path) -> None:
    folder = tmp_path / "longrope"
    shutil.copytree(files.transformer, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rope_scaling": {"rope_type": "longrope"}}))
    assert longest_in_vllm(settings_with("auto"), replace(files, transformer=folder)) == LONG


class FakeVllm:
    """Stands for vLLM: records for which lengths it was loaded, and the longest sentence that it was compared with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, open_model: Any) -> None:
        self.loads: list[int | None] = []
        monkeypatch.setattr(vllm_factory, "load_vllm", self._load)
        monkeypatch.setattr(vllm_factory, "dtype_of", lambda llm: "float32")
        monkeypatch.setattr(vllm_factory, "build_scheduler", lambda *_: executor(reference().vectors))
        self.longest: list[int] = []
        monkeypatch.setattr(
            vllm_factory, "compute_vllm_vectors", lambda _, __, longest, *___: self.longest.append(longest)
        )
        monkeypatch.setattr(vllm_internals, "open_model", open_model)

    def _load(self, _: Any, __: Any, ___: str, longest: int | None = None, rank: int | None = None) -> object:
        self.loads.append(longest)
        return object()


def refuse(llm: object) -> None:
    raise DirectUnavailable("layers share keys and values")


def test_a_model_that_is_refused_is_loaded_again_for_all_lengths(
    files: ModelFiles, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    vllm = FakeVllm(monkeypatch, refuse)
    factory.create_executor(settings_with("auto"), files, "cpu")
    assert vllm.loads == [LONGEST_IN_CACHE, None]
    assert "the scheduler executor serves: layers share keys and values" in caplog.text


def test_a_short_model_that_is_refused_is_loaded_once(files: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    vllm = FakeVllm(monkeypatch, refuse)
    factory.create_executor(settings_with("auto"), replace(files, max_length=64), "cpu")
    assert vllm.loads == [64]


def test_vllm_is_loaded_again_if_its_cache_was_freed(files: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[bool] = []
    model = SimpleNamespace(causal=True, quantized=False, free_cache=lambda: freed.append(True))
    vllm = FakeVllm(monkeypatch, lambda llm: model)
    monkeypatch.setattr(vllm_factory, "_direct_executor", lambda *_: refuse(None))
    factory.create_executor(settings_with("auto"), replace(files, max_length=64), "cpu")
    assert freed == [True]
    assert vllm.loads == [64, None]


@pytest.mark.parametrize(("device", "most"), [("cpu", 2048), ("cuda", 8192)])
def test_the_longest_sentence_of_the_comparison_is_capped(
    files: ModelFiles, monkeypatch: pytest.MonkeyPatch, device: str, most: int
) -> None:
    model = SimpleNamespace(causal=False, quantized=False, free_cache=lambda: None)
    vllm = FakeVllm(monkeypatch, lambda llm: model)
    monkeypatch.setattr(vllm_factory, "_direct_executor", lambda *_: executor(reference().vectors))
    factory.create_executor(settings_with("auto"), replace(files, is_causal=False), device)
    assert vllm.longest == [most]


def test_asked_for_the_direct_executor_it_serves_or_the_start_ends(
    files: ModelFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    vllm = FakeVllm(monkeypatch, refuse)
    with pytest.raises(ModelError, match="the direct executor can't serve this model: layers share keys and values"):
        factory.create_executor(settings_with("direct"), files, "cuda")
    assert vllm.loads == [LONGEST_IN_CACHE]


def test_attributes_are_exchanged_only_inside() -> None:
    layer = SimpleNamespace(attn_type="decoder", sliding_window=(-1, -1))
    exchanged = Exchanged([(layer, "attn_type", "encoder_only"), (layer, "sliding_window", (-1, 0))])
    for _ in range(2):
        with exchanged:
            assert (layer.attn_type, layer.sliding_window) == ("encoder_only", (-1, 0))
        assert (layer.attn_type, layer.sliding_window) == ("decoder", (-1, -1))
    with pytest.raises(RuntimeError), exchanged:
        raise RuntimeError
    assert (layer.attn_type, layer.sliding_window) == ("decoder", (-1, -1))
