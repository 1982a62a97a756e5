"""Static embeddings: a table's mean is sentence-transformers' vector, and a folder that is not whole is refused."""

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
from tests.broken_files import cut_in_half

from tritonembed_engine.chunks import unpack
from tritonembed_engine.errors import InvalidArgument, ModelError
from tritonembed_engine.factory import create_executor
from tritonembed_engine.model.files import ModelFiles, read_model_files
from tritonembed_engine.parameters import EmbedParameters
from tritonembed_engine.reference.check import Wrong, refuse_wrong
from tritonembed_engine.reference.making import make_reference
from tritonembed_engine.settings import ModelSettings
from tritonembed_engine.token_ids import TokenIdLimits, TokenIds
from tritonembed_engine.tokenizing.text_tokenizer import TextTokenizer
from tritonembed_perf.families.registry import load_cases
from tritonembed_perf.families.static import MODEL2VEC
from tritonembed_perf.families.writing import write_json

TEXTS = ["", "one", "naïve 😀 中文 ÜBER", "[CLS] <s> [UNK] [SEP]", *("railway company " * n for n in range(1, 60, 7))]
LAYOUTS = ("static_st", "static_new_name", "static_truncates", "static_dense", "model2vec", "model2vec_quantized")

Write = Callable[[str], Path]
Vectors = npt.NDArray[np.float32]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a case of `tritonembed_perf.families`."""

    def once(name: str) -> Path:
        load_cases()[name].write(tmp_path / name)
        return tmp_path / name

    return once


def settings_of(folder: Path, executor: str = "auto", **vllm: Any) -> ModelSettings:
    engine = {"executor": executor, "reference": "off"}
    return ModelSettings.model_validate({"model": str(folder), "vllm": vllm, "engine": engine})


def ids_of(files: ModelFiles, texts: list[str], **parameters: Any) -> TokenIds:
    answer = TextTokenizer(files).encode_requests([([text.encode() for text in texts], EmbedParameters(**parameters))])
    assert isinstance(answer[0], list), answer
    return TokenIdLimits(files.max_length, files.vocab_size).read(answer[0])


def embed(folder: Path, **parameters: Any) -> Vectors:
    """The vectors of TEXTS, normalised if the model's are."""
    files = read_model_files(str(folder))
    found = create_executor(settings_of(folder), files, "cpu").launch(ids_of(files, TEXTS, **parameters)).result()
    if files.normalize:
        found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    return found[:, : files.truncate_dim]


def load(folder: Path) -> None:
    files = read_model_files(str(folder))
    TextTokenizer(files)
    create_executor(settings_of(folder), files, "cpu")


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", LAYOUTS)
def test_vectors_are_sentence_transformers(name: str, write: Write) -> None:
    folder = write(name)
    expected = SentenceTransformer(str(folder), device="cpu", local_files_only=True).encode(TEXTS)
    np.testing.assert_allclose(embed(folder), expected, atol=1e-5)


def test_a_prompt_is_put_before_a_query(write: Write) -> None:
    folder = write("static_st")
    theirs = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    np.testing.assert_allclose(embed(folder, input_type="query"), theirs.encode_query(TEXTS), atol=1e-5)
    assert np.abs(embed(folder) - theirs.encode_query(TEXTS)).max() > 0.1


def test_a_text_without_tokens_gets_zeros_and_not_another_texts_vector(write: Write) -> None:
    files = read_model_files(str(write("static_new_name")))
    executor = create_executor(settings_of(files.folder), files, "cpu")
    vectors = executor.launch(ids_of(files, ["one", "", "two", "  "])).result()
    assert (vectors[[1, 3]] == 0).all()
    assert (np.abs(vectors[[0, 2]]).sum(axis=1) > 0).all()
    with pytest.raises(InvalidArgument, match="outside the vocabulary"):
        TokenIdLimits(files.max_length, files.vocab_size).read([np.array([files.vocab_size], "<i4").tobytes()])


def test_a_text_without_tokens_is_a_chunk_too(write: Write) -> None:
    files = read_model_files(str(write("static_new_name")))
    parameters = EmbedParameters(truncate="CHUNK", chunk_tokens=4)
    [elements] = TextTokenizer(files).encode_requests([([b"", b"one two"], parameters)])
    assert isinstance(elements, list)
    ids, _ = unpack(elements)
    assert ids[0] == np.array([files.empty_id], "<i4").tobytes()


def test_neither_vllm_nor_transformers_is_imported(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write("model2vec")
    for name in ("vllm", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    assert create_executor(settings_of(folder), read_model_files(str(folder)), "cuda").name == "static"


def test_the_files_are_read_without_torch(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write("model2vec_quantized")
    monkeypatch.setitem(sys.modules, "torch", None)
    files = read_model_files(str(folder))
    assert (files.hidden_size, files.vocab_size) == (48, 30_523)
    TextTokenizer(files)


def test_without_modules_json_model2vecs_config_says_whether_to_normalise(write: Write) -> None:
    folder = write("model2vec_nomodules")
    assert read_model_files(str(folder)).normalize
    write_json(folder / "config.json", {**MODEL2VEC, "normalize": False})
    assert not read_model_files(str(folder)).normalize


def test_texts_have_no_limit_but_the_tokenizers_own_and_the_settings(write: Write) -> None:
    unlimited, limited = write("model2vec"), write("static_truncates")
    assert ids_of(read_model_files(str(unlimited)), ["word " * 50_000]).tokens == 50_000
    assert ids_of(read_model_files(str(unlimited), max_length=7), ["word " * 50_000]).tokens == 7
    files = read_model_files(str(limited))
    assert (files.max_length, files.truncate) == (16, "START")


@pytest.mark.parametrize("name", ["static_st", "static_dense", "model2vec_quantized"])
def test_the_reference_accepts_the_executor_and_refuses_another_table(name: str, write: Write) -> None:
    folder = write(name)
    files = read_model_files(str(folder))
    reference = make_reference(str(folder), None, None, False)
    executor = create_executor(settings_of(folder), files, "cpu")
    assert refuse_wrong(executor, reference, "float32").largest < 1e-6
    state = load_file(files.transformer / "model.safetensors")
    table = next(key for key in ("embedding.weight", "embeddings") if key in state)
    save_file({**state, table: state[table].roll(1, 0).contiguous()}, files.transformer / "model.safetensors")
    with pytest.raises(Wrong, match="to the reference"):
        refuse_wrong(create_executor(settings_of(folder), files, "cpu"), reference, "float32")


@pytest.mark.parametrize("asked", ["direct", "scheduler", "transformers"])
def test_no_other_executor_serves_it(asked: str, write: Write) -> None:
    folder = write("model2vec")
    with pytest.raises(ModelError, match=f"the {asked} executor can't serve this model: it is a table of static"):
        create_executor(settings_of(folder, asked), read_model_files(str(folder)), "cpu")


def test_arguments_that_only_vllm_follows_are_refused(write: Write) -> None:
    folder = write("model2vec")
    with pytest.raises(ModelError, match="the static executor has no quantization"):
        create_executor(settings_of(folder, quantization="fp8"), read_model_files(str(folder)), "cpu")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"embeddings": None}, "has no table of embeddings"),
        ({"embeddings": torch.ones(8)}, "the table of embeddings has the shape [8]"),
        ({"embeddings": torch.ones(0, 8)}, "the table of embeddings has the shape [0, 8]"),
        ({"embeddings": torch.ones(500, 2, 3)}, "has the shape [500, 2, 3]"),
        ({"weights": torch.ones(7)}, "weights in model.safetensors has the shape [7], not [30522]"),
        ({"mapping": torch.zeros(30_522, 2)}, "mapping in model.safetensors has the shape [30522, 2]"),
        ({"mapping": torch.full((30_522,), 500)}, "mapping in model.safetensors names rows outside the table of 500"),
        ({"mapping": torch.full((30_522,), -1)}, "names rows outside the table of 500"),
        ({"mapping": None, "weights": None}, "its tokenizer has ids up to 30521, but its table has 500 rows"),
    ],
)
def test_tensors_of_a_wrong_shape_are_refused_by_name(changes: dict[str, Any], named: str, write: Write) -> None:
    file = write("model2vec_quantized") / "model.safetensors"
    state = {**load_file(file), **changes}
    save_file({name: value for name, value in state.items() if value is not None}, file)
    assert named in refusal(file.parent)


@pytest.mark.parametrize(
    ("file", "change", "named"),
    [
        ("model.safetensors", Path.unlink, "model2vec: the model has no weights (model.safetensors)"),
        ("model.safetensors", cut_in_half, "model.safetensors is broken or not complete"),
        ("tokenizer.json", Path.unlink, "the model has no tokenizer (tokenizer.json)"),
        ("tokenizer.json", cut_in_half, "tokenizer.json can't be read"),
        ("tokenizer.json", lambda file: file.write_text("{}"), "its tokenizer can't be loaded"),
        ("modules.json", cut_in_half, "modules.json can't be read"),
        ("adapter_config.json", lambda file: file.write_text("{}"), "model2vec is a LoRA adapter (adapter_config"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused_in_one_line(
    file: str, change: Callable[[Path], Any], named: str, write: Write
) -> None:
    folder = write("model2vec")
    change(folder / file)
    assert named in refusal(folder)


def test_code_in_the_folder_is_not_run(write: Write) -> None:
    folder = write("model2vec")
    listed = json.loads((folder / "modules.json").read_text("utf-8"))
    write_json(folder / "modules.json", [{**listed[0], "type": "my_code.StaticEmbedding"}])
    assert "the model's own code, which is not run" in refusal(folder)
