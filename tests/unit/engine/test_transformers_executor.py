"""The transformers executor gives sentence-transformers' vectors for families that vLLM does not have."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tests.models import ModelShelf

from tritonembed_engine.errors import ModelError
from tritonembed_engine.executors.loading import filler_id
from tritonembed_engine.executors.padding import Grouping
from tritonembed_engine.executors.pooling import Pooler
from tritonembed_engine.executors.transformers_executor import (
    GROUPING,
    TransformersExecutor,
    dtype_name,
    load_encoder,
)
from tritonembed_engine.factory import create_executor
from tritonembed_engine.model.encoders import ENCODERS
from tritonembed_engine.model.files import ModelFiles, read_model_files
from tritonembed_engine.model.steps import Steps
from tritonembed_engine.parameters import EmbedParameters
from tritonembed_engine.settings import ModelSettings
from tritonembed_engine.token_ids import TokenIds
from tritonembed_engine.tokenizing.prompt_lengths import PromptLengths
from tritonembed_engine.tokenizing.text_tokenizer import TextTokenizer
from tritonembed_perf.families.registry import load_cases

LOWEST_COSINE = 0.99999
ONE_RECTANGLE = Grouping(10**9, 10**9)
TEXTS = [
    "",
    "one",
    "naïve 😀 中文 ÜBER",
    "before [PAD] between <pad> after",
    *("railway company " * n + "ends" for n in range(1, 40)),
    "railway " * 600,
]
"""From the special tokens alone to more than the maximum."""

FAMILIES = (
    "mpnet",
    "distilbert_dot",
    "distiluse",
    "albert",
    "electra",
    "deberta_v3",
    "deberta_v2_conv",
    "deberta_v1",
    "sentence_t5",
    "instructor",
    "t5_nomodules",
    "megatron_bert",
    "roformer",
    "xlmr_xl",
    "clip_text",
    "clip_dense",
    "roberta_prelayernorm",
)

Vectors = npt.NDArray[np.float32]
Write = Callable[[str], Path]


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """Writes a case of `tritonembed_perf.families`, once."""
    root = tmp_path_factory.mktemp("families")

    def once(name: str) -> Path:
        if not (root / name).exists():
            (root / name).mkdir()
            load_cases()[name].write(root / name)
        return root / name

    return once


def settings_of(folder: Path, executor: str = "auto", **vllm: Any) -> ModelSettings:
    engine = {"executor": executor, "reference": "off"}
    return ModelSettings.model_validate({"model": str(folder), "vllm": vllm, "engine": engine})


def executor_of(folder: Path, grouping: Grouping = GROUPING["cpu"], **vllm: Any) -> TransformersExecutor:
    files = read_model_files(str(folder))
    model = load_encoder(settings_of(folder, **vllm), files, "cpu")
    pooler = Pooler(files.pooling, Steps(files.steps))
    return TransformersExecutor(model, pooler, 4096, 1024, filler_id(files), grouping)


def inputs(files: ModelFiles, texts: list[str], **parameters: Any) -> tuple[TokenIds, list[int] | None]:
    """Token ids of texts, and the tokens of the prompt that are not pooled."""
    asked = EmbedParameters(**parameters)
    answer = TextTokenizer(files).encode_requests([([text.encode() for text in texts], asked)])[0]
    assert isinstance(answer, list), answer
    skip = PromptLengths(files).skip(asked)
    return TokenIds.join(answer), [skip] * len(texts) if skip else None


def alone(executor: TransformersExecutor, sentences: TokenIds, skips: list[int] | None) -> Vectors:
    parts = sentences.split([1] * len(sentences))
    return np.concatenate([executor.launch(part, skips and skips[:1]).result() for part in parts])


def lowest_cosine(ours: Vectors, theirs: Vectors) -> float:
    assert ours.shape == theirs.shape
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return float((np.einsum("ij,ij->i", ours.astype(np.float64), theirs.astype(np.float64)) / norms).min())


@pytest.mark.parametrize("name", FAMILIES)
def test_vectors_are_sentence_transformers_in_every_batch(name: str, write: Write) -> None:
    folder = write(name)
    files = read_model_files(str(folder))
    theirs = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    executor, in_one = executor_of(folder), executor_of(folder, ONE_RECTANGLE)
    # A prompt changes only the pooling, and only of the model that leaves it out.
    ways = [("encode", {}), ("encode_query", {"input_type": "query"})][: 1 + bool(files.prompts)]
    for method, parameters in ways:
        sentences, skips = inputs(files, TEXTS, **parameters)
        assert sentences.lengths.max() == files.max_length
        expected = getattr(theirs, method)(TEXTS, batch_size=1, show_progress_bar=False)
        once = executor.launch(sentences, skips).result()
        padded = in_one.launch(sentences, skips).result()
        for ours in (once, padded, alone(executor, sentences, skips)):
            assert lowest_cosine(ours, expected) >= LOWEST_COSINE
        np.testing.assert_allclose(padded, once, atol=2e-5 * np.abs(once).max())


def test_auto_chooses_it_for_what_vllm_does_not_have(
    write: Write, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    folder = write("mpnet")
    executor = create_executor(settings_of(folder), read_model_files(str(folder)), "cpu")
    assert executor.name == "transformers"
    assert "the openvino executor does not serve: openvino is not installed" in caplog.text


@pytest.mark.parametrize("asked", ["direct", "scheduler"])
def test_another_executor_is_refused_for_it(asked: str, write: Write) -> None:
    folder = write("electra")
    expected = rf"electra: the {asked} executor can't serve this model: vLLM leaves out ELECTRA's projection"
    with pytest.raises(ModelError, match=expected):
        create_executor(settings_of(folder, asked), read_model_files(str(folder)), "cpu")


def test_it_serves_what_vllm_has_if_it_is_asked_for(shelf: ModelShelf) -> None:
    folder = shelf("bert")
    assert read_model_files(str(folder)).reason_against_vllm is None
    executor = create_executor(settings_of(folder, "transformers"), read_model_files(str(folder)), "cpu")
    assert executor.name == "transformers"
    sentences, _ = inputs(read_model_files(str(folder)), TEXTS)
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, batch_size=1, show_progress_bar=False)
    assert lowest_cosine(executor.launch(sentences).result(), expected) >= LOWEST_COSINE


def test_a_family_that_it_does_not_know_is_refused_in_one_line(shelf: ModelShelf) -> None:
    folder = shelf("qwen3")
    files = read_model_files(str(folder))
    with pytest.raises(ModelError, match=r"^qwen3: the transformers executor does not know qwen3 models$"):
        create_executor(settings_of(folder, "transformers"), files, "cpu")


@pytest.mark.parametrize(
    ("argument", "value"), [("quantization", "fp8"), ("hf_overrides", {"a": 1}), ("tensor_parallel_size", 2)]
)
def test_arguments_that_change_the_model_are_refused(argument: str, value: Any, write: Write) -> None:
    folder = write("mpnet")
    with pytest.raises(ModelError, match=f"^mpnet: the transformers executor has no {argument}$"):
        load_encoder(settings_of(folder, **{argument: value}), read_model_files(str(folder)), "cpu")


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        ("cpu", None, "float32"),
        ("cpu", "bfloat16", "bfloat16"),
        ("cpu", "half", "float16"),
        ("cpu", "auto", "float32"),
    ],
)
def test_the_model_computes_in_the_type_that_is_asked_for(
    device: str, dtype: str | None, expected: str, write: Write
) -> None:
    vllm = {} if dtype is None else {"dtype": dtype}
    model = load_encoder(settings_of(write("mpnet"), **vllm), read_model_files(str(write("mpnet"))), device)
    assert dtype_name(model) == expected


@pytest.mark.parametrize("name", ["mpnet", "distiluse", "albert", "electra", "deberta_v3"])
def test_sixteen_bits_stay_close_to_thirty_two(name: str, write: Write) -> None:
    sentences, _ = inputs(read_model_files(str(write(name))), TEXTS)
    exact = executor_of(write(name)).launch(sentences).result()
    assert lowest_cosine(executor_of(write(name), dtype="bfloat16").launch(sentences).result(), exact) > 0.999


def test_a_checkpoint_that_lacks_a_weight_is_refused_by_its_name(write: Write, tmp_path: Path) -> None:
    folder = tmp_path / "half"
    load_cases()["mpnet"].write(folder)
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.relative_attention_bias.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"^half: the model's weights lack encoder.relative_attention_bias.weight$"):
        load_encoder(settings_of(folder), read_model_files(str(folder)), "cpu")
    (folder / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ModelError, match=r"^transformers could not load the model: SafetensorError"):
        load_encoder(settings_of(folder), read_model_files(str(folder)), "cpu")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"^half: the model has no weights"):
        load_encoder(settings_of(folder), read_model_files(str(folder)), "cpu")


def test_code_in_the_folder_is_never_run(write: Write, tmp_path: Path) -> None:
    folder = tmp_path / "coded"
    load_cases()["mpnet"].write(folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "trap.Trap", "AutoConfig": "trap.Config"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "trap.py").write_text("raise SystemExit('the code was run')")
    files = read_model_files(str(folder))
    model = load_encoder(settings_of(folder, trust_remote_code=True), files, "cpu")
    assert type(model).__name__ == "MPNetModel"


def test_every_class_exists() -> None:
    import transformers

    for name in ENCODERS.values():
        assert issubclass(getattr(transformers, name), torch.nn.Module)
