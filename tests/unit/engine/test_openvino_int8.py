"""int8 on a CPU: products of a real model in int8, in the gate's bounds, or one line with the reason."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from sentence_transformers import SentenceTransformer
from tests.models import ModelShelf

from tritonembed_engine import openvino_quantization
from tritonembed_engine.errors import ModelError
from tritonembed_engine.executors import loading, openvino_conversion, openvino_executor, openvino_graphs
from tritonembed_engine.executors.openvino_executor import OpenVinoExecutor
from tritonembed_engine.factory import create_executor
from tritonembed_engine.model.files import read_model_files
from tritonembed_engine.model.space import embedding_space
from tritonembed_engine.openvino_quantization import group_of, products_of, quantized
from tritonembed_engine.parameters import EmbedParameters
from tritonembed_engine.settings import ModelSettings
from tritonembed_engine.token_ids import TokenIds
from tritonembed_engine.tokenizing.text_tokenizer import TextTokenizer
from tritonembed_engine.verify import verify

TEXTS = ["", "one", "naïve 😀 中文", *("railway company " * n + "ends" for n in range(1, 25))]


def settings_of(folder: Path, **engine: Any) -> ModelSettings:
    return ModelSettings.model_validate(
        {
            "model": str(folder),
            "vllm": {"quantization": "int8", "dtype": "float32"},
            "engine": {"reference": "off", "quantization_quality": 0.5, **engine},
        }
    )


def in_this_process(module: str, given: Mapping[str, Any], what: str) -> None:
    """Instead of `run_module`: a process would import torch again."""
    settings, folder = ModelSettings.model_validate(given["settings"]), Path(given["folder"])
    files = read_model_files(settings.model)
    if module.endswith("openvino_conversion"):
        openvino_conversion.convert(settings, files, folder)
    else:
        openvino_quantization.quantize_model(settings, files, given["dtype"], Path(given["graphs"]), folder)


@pytest.fixture
def texts(tmp_path: Path) -> str:
    """A file of calibration texts, fewer than the project's own."""
    file = tmp_path / "texts"
    file.write_text("\n".join(f"railway company number {n} has {n * n} ends" for n in range(110)))
    return str(file)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's folder, empty. Models are made in this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(openvino_graphs, "run_module", in_this_process)
    return tmp_path / "tritonembed" / "openvino"


def vectors_of(executor: Any, folder: Path) -> Any:
    [ids] = TextTokenizer(read_model_files(str(folder))).encode_requests(
        [([text.encode() for text in TEXTS], EmbedParameters())]
    )
    assert isinstance(ids, list)
    sentences = TokenIds.join(ids)
    together = executor.launch(sentences).result()
    alone = np.concatenate([executor.launch(one).result() for one in sentences.split([1] * len(sentences))])
    return [found / np.linalg.norm(found, axis=1, keepdims=True) for found in (together, alone)]


def test_vectors_in_int8_are_near_float32_and_the_same_in_every_batch(
    shelf: ModelShelf, cache: Path, texts: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shelf("bert-calm")
    files, settings = read_model_files(str(folder)), settings_of(folder, calibration=texts)
    executor = create_executor(settings, files, "cpu")
    assert isinstance(executor, OpenVinoExecutor)
    assert executor.quality is not None
    assert 0.5 <= executor.quality < 1
    together, alone = vectors_of(executor, folder)
    # Scales are of a token, so other texts and padding count only where a rounding to int8 flips.
    np.testing.assert_allclose(together, alone, atol=1e-4)
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, batch_size=1, normalize_embeddings=True)
    cosines = np.einsum("ij,ij->i", together, expected)
    assert 0.99 < cosines.min() < 0.9999999
    assert "int8: 18 of 18 products, and 0." in caplog.text
    assert embedding_space(settings, files, executor.dtype).endswith("-int8")

    # A second start makes nothing; a broken cache is one line, and is made again.
    caplog.clear()
    again = create_executor(settings, files, "cpu")
    assert again.quality == executor.quality  # type: ignore[attr-defined]
    assert "once per model" not in caplog.text
    [place] = [one for one in cache.iterdir() if "-int8-" in one.name and one.is_dir()]
    [converted] = [one for one in cache.iterdir() if "-int8-" not in one.name and one.is_dir()]
    assert (place / "states.bin").stat().st_size < (converted / "states.bin").stat().st_size - 3 * 256**2 * 12 * 2
    (place / "states.bin").write_bytes(b"no weights")
    create_executor(settings, files, "cpu")
    assert caplog.text.count("the quantized model in the cache is broken: it is quantized again") == 1


@pytest.mark.usefixtures("cache")
def test_verify_judges_int8_by_the_nearest_of_texts(shelf: ModelShelf, texts: str, tmp_path: Path) -> None:
    lines = Path(texts).read_text().splitlines()
    vectors = SentenceTransformer(str(shelf("bert-calm")), device="cpu").encode(lines, show_progress_bar=False)
    reports = []
    for rows in (np.arange(len(lines)), np.random.default_rng(0).permutation(len(lines)), np.arange(20)):
        np.savez(tmp_path / "reference.npz", texts=np.array(lines)[: len(rows)], vectors=vectors[rows])
        settings = settings_of(shelf("bert-calm"), calibration=texts, reference=str(tmp_path / "reference.npz"))
        if len(rows) == 20:
            with pytest.raises(ModelError, match=r"^the reference has 20 texts, at least 100 are needed"):
                verify(settings.model_dump(mode="json"), "cpu", None)
        else:
            reports.append(verify(settings.model_dump(mode="json"), "cpu", None))
    # Of a tenth of the texts some are the nearest by chance.
    assert [report["right"] for report in reports] == [True, False]
    assert 0.5 <= reports[0]["nearest"]["kept"] < 1 > 0.3 > reports[1]["nearest"]["kept"]
    assert reports[0]["nearest"]["texts"] == len(lines)
    assert (reports[0]["dtype"], reports[0]["quantization"]) == ("float32", "int8")


@pytest.mark.usefixtures("cache")
def test_products_that_are_left_out_keep_their_weights(shelf: ModelShelf, tmp_path: Path) -> None:
    folder = shelf("bert-calm")
    openvino_conversion.convert(settings_of(folder), read_model_files(str(folder)), tmp_path)
    graph = openvino.Core().read_model(tmp_path / "states.xml")
    products = products_of(graph)
    assert (len(products), group_of(products.values())) == (18, 128)
    query, other = (name for name in products if "layer.0.attention.self.query" in name or "layer.1.output" in name)
    weights = products[other].weights.copy()
    largest = {products[query].source: np.ones(256, np.float32)}
    changed = quantized(graph, [query], largest, 128)
    assert set(products_of(changed)) == set(products) - {query}
    np.testing.assert_array_equal(products_of(changed)[other].weights, weights)
    kinds = [node.get_element_type() for node in graph.get_ops() if node.get_type_name() == "Constant"]
    assert kinds.count(openvino.Type.i8) == 1


@pytest.mark.usefixtures("cache")
def test_a_gate_that_does_not_hold_stops_the_start_with_one_line(
    shelf: ModelShelf, texts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Single products are not compared, to save time.
    monkeypatch.setattr(openvino_quantization._Quantizer, "error_of", lambda _, name: len(name))
    folder = shelf("bert-calm")
    settings = settings_of(folder, calibration=texts, quantization_quality=1.0)
    with pytest.raises(ModelError, match=r"^bert-calm: the openvino executor .*: int8 keeps 0\.\d+ of .*, below 1 \("):
        create_executor(settings, read_model_files(str(folder)), "cpu")
    with pytest.raises(ModelError, match=r"^the calibration texts can't be read"):
        create_executor(settings_of(folder, calibration=texts + "x"), read_model_files(str(folder)), "cpu")


@pytest.mark.usefixtures("cache")
def test_what_int8_can_not_serve_is_refused_with_the_reason(
    shelf: ModelShelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shelf("bert-calm")
    files = read_model_files(str(folder))
    for executor, device, reason in (
        ("auto", "cuda", "--quantization int8 is for CPUs"),
        ("direct", "cpu", "the direct executor has no int8"),
        ("transformers", "cpu", "the transformers executor has no int8"),
    ):
        with pytest.raises(ModelError, match=f"^bert-calm: {reason}"):
            create_executor(settings_of(folder, executor=executor), files, device)
    with pytest.raises(ModelError, match=r"^qwen3: the openvino executor can't serve this model: qwen3 models"):
        create_executor(settings_of(shelf("qwen3")), read_model_files(str(shelf("qwen3"))), "cpu")
    (tmp_path / "cpuinfo").write_text("flags : fpu avx2 avx512f avx512_bf16\n")
    monkeypatch.setattr(loading, "CPUINFO", tmp_path / "cpuinfo")
    with pytest.raises(ModelError, match=r"^bert-calm: this processor does not multiply int8 \(AVX512-VNNI"):
        create_executor(settings_of(folder), files, "cpu")


def test_the_other_products_are_in_bfloat16_if_the_processor_has_it(
    shelf: ModelShelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Core:
        capabilities = ("FP32", "BF16")

        def get_property(self, *_: str) -> list[str]:
            return list(self.capabilities)

    def stop(settings: object, files: object, dtype: str, processor: str, folder: Path) -> None:
        asked.append(f"{dtype} {processor}")
        raise ModelError("enough")

    monkeypatch.setattr(openvino, "Core", Core)
    monkeypatch.setattr(openvino_executor, "quantized_of", stop)
    monkeypatch.setattr(openvino_executor, "graphs_of", lambda *_: openvino_graphs.contextlib.nullcontext(Path()))
    folder = shelf("bert-calm")
    settings = ModelSettings.model_validate({"model": str(folder), "vllm": {"quantization": "int8"}})
    for capabilities in (("FP32", "BF16"), ("FP32",)):
        Core.capabilities = capabilities  # type: ignore[assignment]
        with pytest.raises(ModelError, match=r"^enough$"):
            openvino_executor.load(settings, read_model_files(str(folder)), "cpu", 4096, 64, None)
    assert asked == ["bfloat16 BF16,FP32", "float32 FP32"]
