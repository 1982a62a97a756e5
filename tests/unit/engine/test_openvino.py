"""The openvino executor gives sentence-transformers' vectors, or another executor serves and the log has the reason."""

import json
import shutil
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from tests.models import ModelShelf
from tests.unit.engine.fake_executor import FakeExecutor

from tritonembed_engine.errors import ModelError, OutOfMemory
from tritonembed_engine.executors import loading, openvino_conversion, openvino_executor, openvino_graphs
from tritonembed_engine.executors.openvino_executor import OpenVinoExecutor, reason_against
from tritonembed_engine.executors.openvino_graphs import OpenVinoUnavailable, graphs_of
from tritonembed_engine.factory import create_executor
from tritonembed_engine.model.files import ModelFiles, read_model_files
from tritonembed_engine.parameters import EmbedParameters
from tritonembed_engine.settings import ModelSettings
from tritonembed_engine.token_ids import Spans, TokenIds
from tritonembed_engine.tokenizing.prompt_lengths import PromptLengths
from tritonembed_engine.tokenizing.text_tokenizer import TextTokenizer
from tritonembed_perf.families.registry import load_cases
from tritonembed_protocol.types import MULTI_VECTOR, SPARSE

TEXTS = ["", "one", "naïve 😀 中文", "before [PAD] after", *("railway company " * n + "ends" for n in range(1, 25))]


def settings_of(folder: Path, executor: str = "openvino", **vllm: Any) -> ModelSettings:
    engine = {"executor": executor, "reference": "off"}
    return ModelSettings.model_validate({"model": str(folder), "vllm": vllm, "engine": engine})


def ids_of(files: ModelFiles, texts: list[str], **parameters: Any) -> tuple[TokenIds, list[int] | None]:
    """Token ids of texts, and the tokens of the prompt that are not pooled."""
    asked = EmbedParameters(**parameters)
    answer = TextTokenizer(files).encode_requests([([text.encode() for text in texts], asked)])[0]
    assert isinstance(answer, list), answer
    skip = PromptLengths(files).skip(asked)
    return TokenIds.join(answer), [skip] * len(texts) if skip else None


def in_this_process(module: str, given: Mapping[str, Any], what: str) -> None:
    """Instead of `run_module`: a process would import torch again."""
    settings = ModelSettings.model_validate(given["settings"])
    openvino_conversion.convert(settings, read_model_files(settings.model), Path(given["folder"]))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's folder, empty. Models are converted in this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(openvino_graphs, "run_module", in_this_process)
    return tmp_path / "tritonembed" / "openvino"


def loaded(folder: Path) -> OpenVinoExecutor:
    files = read_model_files(str(folder))
    return openvino_executor.load(settings_of(folder), files, "cpu", 4096, 1024, None)


def unit(vectors: Any) -> Any:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.usefixtures("cache")
def test_vectors_are_sentence_transformers_in_every_batch(shelf: ModelShelf, tmp_path: Path) -> None:
    """BERT with a prompt, and DistilBERT with a Dense module behind its pooling."""
    distiluse = tmp_path / "distiluse"
    distiluse.mkdir()
    load_cases()["distiluse"].write(distiluse)
    for folder, method, parameters in (
        (shelf("bert"), "encode_query", {"input_type": "query"}),
        (distiluse, "encode", {}),
    ):
        files, executor = read_model_files(str(folder)), loaded(folder)
        sentences, skips = ids_of(files, TEXTS, **parameters)
        theirs = getattr(SentenceTransformer(str(folder), device="cpu"), method)
        expected = unit(theirs(TEXTS, batch_size=1, show_progress_bar=False))
        together = executor.launch(sentences, skips).result()
        parts = sentences.split([1] * len(sentences))
        alone = np.concatenate([executor.launch(part, skips and skips[:1]).result() for part in parts])
        np.testing.assert_allclose(unit(together), expected, atol=1e-5)
        np.testing.assert_allclose(unit(alone), unit(together), atol=1e-5)
        assert executor.dimensions == expected.shape[1]


@pytest.mark.usefixtures("cache")
def test_spans_prompts_and_outputs_per_token_are_those_of_transformers(shelf: ModelShelf) -> None:
    folder = shelf("bert")
    files = read_model_files(str(folder))
    ours = loaded(folder)
    theirs = create_executor(settings_of(folder, "transformers"), files, "cpu")
    sentences, _ = ids_of(files, TEXTS)
    spans = Spans(
        np.full(len(sentences), 2),
        np.tile(np.array([0, 1], np.int32), len(sentences)),
        np.repeat(sentences.lengths, 2),
    )
    skips = [int(length) // 2 for length in sentences.lengths]
    chosen = np.arange(sentences.tokens) % 3 > 0
    choices = {SPARSE: chosen, MULTI_VECTOR: chosen}
    for extra in ({"spans": spans}, {"skips": skips}, {"choices": choices}):
        expected, found = theirs.launch(sentences, **extra), ours.launch(sentences, **extra)
        np.testing.assert_allclose(found.result(), expected.result(), atol=1e-5)
        assert found.token_outputs.keys() == expected.token_outputs.keys()
        for name, output in expected.token_outputs.items():
            np.testing.assert_array_equal(found.token_outputs[name].counts, output.counts)
            rows, other = found.token_outputs[name].rows, output.rows
            if name == SPARSE:
                np.testing.assert_array_equal(rows["id"], other["id"])
                rows, other = rows["weight"], other["weight"]
            np.testing.assert_allclose(rows, other, atol=1e-5)
    assert ours.token_dimensions == theirs.token_dimensions


def test_a_second_start_reads_the_cache_and_a_broken_one_is_made_again(
    shelf: ModelShelf, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[str] = []

    def convert(module: str, given: Mapping[str, Any], what: str) -> None:
        made.append(given["folder"])
        (Path(given["folder"]) / "states.xml").write_text("graph")

    monkeypatch.setattr(openvino_graphs, "run_module", convert)
    folder = shelf("bert")
    settings, files = settings_of(folder), read_model_files(str(folder))
    for _ in range(2):
        with graphs_of(settings, files) as place:
            assert (place / "states.xml").read_text() == "graph"
            assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert len(made) == 1
    (place / "states.xml").write_text("gra")
    with graphs_of(settings, files) as again:
        assert (again / "states.xml").read_text() == "graph"
    (again / openvino_graphs.MANIFEST).unlink()
    with graphs_of(settings, files):
        pass
    shutil.rmtree(again)
    again.write_text("a file instead of a folder")
    with graphs_of(settings, files):
        pass
    assert len(made) == 4
    assert caplog.text.count("the converted model in the cache is broken: it is converted again") == 3
    # Nothing is left of the parts.
    assert [one.name for one in cache.iterdir() if one.is_dir()] == [place.name]

    # A cache that can't be locked is left alone.
    (cache / f"{place.name}.lock").unlink()
    (cache / f"{place.name}.lock").mkdir()
    with graphs_of(settings, files) as elsewhere:
        assert (elsewhere / "states.xml").read_text() == "graph"
    assert not elsewhere.exists()
    assert "the converted model is not cached: the cache folder can't be used (IsADirectoryError)" in caplog.text


def test_a_failed_conversion_leaves_nothing_and_is_the_reason(
    shelf: ModelShelf, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ModelError("an operation is missing")

    monkeypatch.setattr(openvino_graphs, "run_module", fail)
    folder = shelf("bert")
    with (
        pytest.raises(OpenVinoUnavailable, match=r"^the model does not convert: an operation is missing$"),
        graphs_of(settings_of(folder), read_model_files(str(folder))),
    ):
        pass
    assert not [one for one in cache.iterdir() if one.is_dir()]


def test_without_a_cache_the_model_is_converted_for_this_start(
    shelf: ModelShelf, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def convert(module: str, given: Mapping[str, Any], what: str) -> None:
        (Path(given["folder"]) / "states.xml").write_text("graph")

    monkeypatch.setattr(openvino_graphs, "run_module", convert)
    monkeypatch.setattr(openvino_graphs, "cache_folder", lambda kind: None)
    folder = shelf("bert")
    with graphs_of(settings_of(folder), read_model_files(str(folder))) as place:
        assert (place / "states.xml").exists()
    assert not place.exists()
    assert "no cache folder is writable" in caplog.text


@pytest.mark.parametrize(
    ("vllm", "reason"),
    [
        ({"dtype": "bfloat16", "max_model_len": 32, "revision": None, "tensor_parallel_size": 1}, None),
        ({"trust_remote_code": True}, "trust_remote_code is an engine argument of vLLM"),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size is an engine argument of vLLM"),
        ({"hf_overrides": {"a": 1}}, "hf_overrides is an engine argument of vLLM"),
    ],
)
def test_engine_arguments_that_only_vllm_follows_are_left_to_it(
    shelf: ModelShelf, vllm: dict[str, Any], reason: str | None
) -> None:
    folder = shelf("bert")
    assert reason_against(settings_of(folder, **vllm), read_model_files(str(folder)), "cpu") == reason


def test_other_models_devices_and_machines_are_refused_with_the_reason(
    shelf: ModelShelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bert, qwen3 = shelf("bert"), shelf("qwen3")
    expected = "qwen3: the openvino executor can't serve this model: qwen3 models are not among the encoders"
    with pytest.raises(ModelError, match=f"^{expected}"):
        create_executor(settings_of(qwen3), read_model_files(str(qwen3)), "cpu")
    files = read_model_files(str(bert))
    assert reason_against(settings_of(bert), files, "cuda") == "it is for CPUs"
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ModelError, match=r"can't serve this model: openvino is not installed \(pip install"):
        create_executor(settings_of(bert), files, "cpu")


@pytest.mark.usefixtures("cache")
def test_bfloat16_is_refused_if_the_processor_does_not_multiply_it(
    shelf: ModelShelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openvino

    class Core:
        def get_property(self, *_: str) -> list[str]:
            return ["FP32", "INT8"]

    monkeypatch.setattr(openvino, "Core", Core)
    folder = shelf("bert")
    files = read_model_files(str(folder))
    for dtype, reason in (("bfloat16", "this processor does not multiply bfloat16"), ("half", "it has no float16")):
        with pytest.raises(ModelError, match=reason):
            create_executor(settings_of(folder, dtype=dtype), files, "cpu")


@pytest.mark.parametrize(
    ("flags", "refused"), [("avx2 avx512f", True), ("avx2 avx512_bf16", False), ("amx_bf16", False)]
)
def test_no_executor_serves_bfloat16_on_a_processor_without_it(
    shelf: ModelShelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, refused: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : fpu {flags} sse\n")
    monkeypatch.setattr(loading, "CPUINFO", tmp_path / "cpuinfo")
    folder = shelf("bert")
    files = read_model_files(str(folder))
    assert loading.reason_against_bfloat16(settings_of(folder)) is None
    assert (loading.reason_against_bfloat16(settings_of(folder, dtype="bfloat16")) is not None) == refused
    if refused:
        with pytest.raises(ModelError, match=r"^bert: this processor does not multiply bfloat16 .*float32"):
            create_executor(settings_of(folder, "transformers", dtype="bfloat16"), files, "cpu")


def test_if_its_vectors_are_wrong_the_next_executor_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "distiluse"
    folder.mkdir()
    load_cases()["distiluse"].write(folder)
    vectors = SentenceTransformer(str(folder), device="cpu").encode(["a text", "another"], show_progress_bar=False)
    np.savez(tmp_path / "reference.npz", texts=["a text", "another"], vectors=vectors)
    wrong = FakeExecutor(max_batch_tokens=4096, max_batch_sentences=64)
    wrong.dtype = "float32"
    wrong.compute = lambda sentences: np.ones((len(sentences), vectors.shape[1]), np.float32)
    monkeypatch.setattr(openvino_executor, "load", lambda *_: wrong)
    engine = {"reference": str(tmp_path / "reference.npz")}
    settings = ModelSettings.model_validate({"model": str(folder), "engine": engine})
    assert create_executor(settings, read_model_files(str(folder)), "cpu").name == "transformers"
    assert "the openvino executor does not serve: text" in caplog.text
    assert "below 0.999900" in caplog.text

    def crash(*_: Any) -> None:
        raise RuntimeError("of OpenVINO, with /a/path")

    monkeypatch.setattr(openvino_executor, "load", crash)
    assert create_executor(settings, read_model_files(str(folder)), "cpu").name == "transformers"
    assert "the openvino executor does not serve: it failed (RuntimeError)" in caplog.text
    monkeypatch.undo()

    def unconvertible(*_: Any) -> None:
        raise ModelError("an operation is missing")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(openvino_graphs, "run_module", unconvertible)
    assert create_executor(settings, read_model_files(str(folder)), "cpu").name == "transformers"
    assert "does not serve: the model does not convert: an operation is missing" in caplog.text


def test_no_room_for_a_batch_is_told_apart_and_messages_hold_no_path() -> None:
    explain = OpenVinoExecutor.explain
    of_room = explain(None, RuntimeError("Failed to allocate 9 bytes of memory"))  # type: ignore[arg-type]
    assert isinstance(of_room, OutOfMemory)
    other = explain(None, RuntimeError("Check failed at /src/x.cpp"))  # type: ignore[arg-type]
    assert not isinstance(other, OutOfMemory)
    assert json.dumps(str(other)) == '"a batch failed: RuntimeError"'
