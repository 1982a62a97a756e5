"""Vectors are compared with references. References are cached, recomputed and refused as they should be."""

import json
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tests.decoders import expected_vectors, random_sentences, write_decoder
from tests.models import ModelShelf
from tests.unit.engine.fake_executor import Array, FakeExecutor, ids

from tritonembed_engine.errors import ModelError
from tritonembed_engine.model.checkpoint import check_complete
from tritonembed_engine.model.files import ModelFiles, read_model_files
from tritonembed_engine.reference import store
from tritonembed_engine.reference.cases import Case, Reference, Vectors, load
from tritonembed_engine.reference.check import Gate, Verdict, Wrong, compare, judge, refuse_wrong
from tritonembed_engine.reference.oracle import Oracle
from tritonembed_engine.reference.store import read_reference
from tritonembed_engine.settings import ModelSettings

CASES, WIDTH = 12, 64


def reference(vectors: Vectors | None = None, **rounding: float) -> Reference:
    vectors = np.random.default_rng(0).normal(size=(CASES, WIDTH)).astype(np.float32) if vectors is None else vectors
    return Reference([Case(f"case {n}", ids(n + 1)) for n in range(len(vectors))], vectors, "test", rounding)


def turned(vectors: Vectors, distance: float) -> Vectors:
    """Vectors at this distance (1 - cosine) to the given vectors."""
    wide = vectors.astype(np.float64)
    other = np.random.default_rng(7).normal(size=wide.shape)
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    other -= wide * (other * wide).sum(axis=1, keepdims=True) / length**2
    other *= length / np.linalg.norm(other, axis=1, keepdims=True)
    cosine = 1 - distance
    return (cosine * wide + np.sqrt(1 - cosine**2) * other).astype(np.float32)


def executor(vectors: Vectors) -> FakeExecutor:
    """Answers the case of id n with row n - 1."""
    made = FakeExecutor(max_batch_tokens=4096, max_batch_sentences=64)

    def compute(sentences: Sequence[bytes]) -> Array:
        return np.stack([vectors[np.frombuffer(sentence, "<i4")[0] - 1] for sentence in sentences])

    made.compute = compute
    return made


@pytest.mark.parametrize(
    ("dtype", "distance", "right"),
    [
        ("float32", 0.0, True),
        ("float32", 0.00008, True),
        ("float32", 0.00012, False),
        ("bfloat16", 0.0004, True),
        ("bfloat16", 0.0006, False),
        ("float16", 0.0004, True),
        ("float16", 0.0006, False),
        ("odd", 0.0004, True),
        ("odd", 0.0006, False),
    ],
)
def test_the_cosine_that_passes_depends_on_the_type(dtype: str, distance: float, right: bool) -> None:
    expected = reference()
    verdict = judge(turned(expected.vectors, distance), expected, dtype)
    assert (verdict.largest <= verdict.allowed) == right
    assert verdict.largest == pytest.approx(distance, abs=1e-6)


def test_padding_that_shows_in_a_batch_is_wrong() -> None:
    expected = reference()
    padding = executor(expected.vectors)
    exact = padding.compute
    padding.compute = lambda batch: exact(batch) if len(batch) == 1 else turned(exact(batch), 0.001)
    assert compare(padding, expected, "float32").is_right
    verdict = compare(padding, expected, "float32", padded=True)
    assert verdict.largest == pytest.approx(0.001, abs=1e-6)
    with pytest.raises(Wrong, match=r"cosine 0\.99900"):
        Gate(expected, "float32", False, padded=True).check(padding)
    padding.compute = exact
    assert compare(padding, expected, "float32", padded=True).is_right


def test_batches_of_the_check_respect_the_executors_limits() -> None:
    expected = reference()
    small = executor(expected.vectors)
    small.max_batch_tokens, small.max_batch_sentences = 4, 3
    exact, sizes = small.compute, []

    def compute(batch: Sequence[bytes]) -> Array:
        sizes.append(len(batch))
        return exact(batch)

    small.compute = compute
    assert compare(small, expected, "float32", padded=True).is_right
    assert sizes == [1] * CASES + [3] * (CASES // 3)


def test_a_type_that_rounds_more_in_transformers_itself_may_round_more_here() -> None:
    expected = reference(bfloat16=0.002)
    assert judge(turned(expected.vectors, 0.0025), expected, "bfloat16").is_right
    assert not judge(turned(expected.vectors, 0.0035), expected, "bfloat16").is_right
    assert not judge(turned(expected.vectors, 0.0025), expected, "float32").is_right


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("expected_zero", [False, True])
def test_a_vector_that_is_not_finite_has_the_greatest_distance(bad: float, expected_zero: bool) -> None:
    expected = reference()
    if expected_zero:
        expected.vectors[3] = 0
    answers = expected.vectors.copy()
    answers[3, 5] = bad
    verdict = judge(answers, expected, "bfloat16")
    assert (verdict.largest, verdict.worst, verdict.is_right) == (2.0, "case 3", False)


def test_zeros_are_right_only_where_the_reference_has_zeros() -> None:
    expected = reference()
    expected.vectors[3] = 0
    assert judge(expected.vectors.copy(), expected, "float32").is_right
    for case in (3, 4):
        answers = expected.vectors.copy()
        answers[case] = 0 if case == 4 else 1
        verdict = judge(answers, expected, "float32")
        assert (verdict.worst, verdict.is_right) == (f"case {case}", False)


def test_swapped_neighbours_are_wrong_though_each_cosine_passes() -> None:
    """The scores with the first vector are 1, 0.99 and 0.984. The last two are swapped."""
    angles = np.array([0.0, np.arccos(0.99), np.arccos(0.984)])
    expected = reference(np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32), bfloat16=0.0)
    nearer = angles.copy()
    nearer[1:] += np.array([0.021, -0.021])
    answers = np.stack([np.cos(nearer), np.sin(nearer)], axis=1).astype(np.float32)
    verdict = judge(answers, expected, "bfloat16")
    assert verdict.largest <= verdict.allowed
    assert verdict.swaps
    with pytest.raises(Wrong, match="neighbours are in another order"):
        refuse_wrong(executor(answers), expected, "bfloat16")


def test_neighbours_whose_scores_hardly_differ_may_be_swapped() -> None:
    vectors = np.random.default_rng(0).normal(size=(1, WIDTH)) + np.random.default_rng(1).normal(
        size=(CASES, WIDTH), scale=1e-3
    )
    expected = reference(vectors.astype(np.float32))
    assert judge(turned(expected.vectors, 1e-5), expected, "bfloat16").is_right


def test_a_shortened_reference_is_compared_with_the_same_number_of_dimensions() -> None:
    whole = reference()
    cut = Reference(whole.cases, whole.vectors[:, :16], "test", {})
    assert judge(whole.vectors, cut, "float32").is_right
    assert not judge(whole.vectors[:, :8], cut, "float32").is_right


def test_an_executor_is_refused_by_its_worst_case() -> None:
    expected = reference()
    answers = expected.vectors.copy()
    answers[7] = turned(answers[7:8], 0.25)[0]
    with pytest.raises(Wrong, match=r"^case 7: cosine 0\.750000 to the reference \(test\), below 0\.999900$"):
        refuse_wrong(executor(answers), expected, "float32")
    assert refuse_wrong(executor(expected.vectors), expected, "float32").is_right


def test_cases_that_the_executor_refuses_are_left_out() -> None:
    expected = reference()
    answers = expected.vectors.copy()
    answers[4] = 0
    made = executor(answers)
    made.refused_id = 5
    verdict = compare(made, expected, "float32")
    assert verdict.is_right
    assert len(verdict.distances) == CASES - 1
    with pytest.raises(Wrong, match="no case that the executor accepts"):
        compare(made, Reference(expected.cases[4:5], expected.vectors[4:5], "test", {}), "float32")


def test_tokens_of_a_prompt_reach_the_executor() -> None:
    expected = reference()
    expected = Reference([Case(case.name, case.ids, 1) for case in expected.cases], expected.vectors, "test", {})
    made = executor(expected.vectors)
    compare(made, expected, "float32")
    assert made.skips == [[1]] * CASES


def test_a_gate_warns_about_quantized_weights_and_refuses_others(caplog: pytest.LogCaptureFixture) -> None:
    expected = reference()
    far = executor(turned(expected.vectors, 0.05))
    Gate(expected, "bfloat16", quantized=True).check(far)
    assert "cosine 0.950" in caplog.text
    with pytest.raises(Wrong):
        Gate(expected, "bfloat16", quantized=False).check(far)
    Gate(None, "bfloat16", quantized=False).check(far)


def test_a_reference_is_read_as_it_was_written(tmp_path: Path) -> None:
    cases = [
        Case("empty", ids(1, 2), 0, ""),
        Case("nul at the end", ids(7), 3, "a\x00", "query"),
        Case("no text", ids(*range(300))),
        Case("😀", ids(5), 1, "naïve 😀\n", "passage"),
    ]
    written = Reference(cases, reference().vectors[:4], "somebody", {"bfloat16": 0.001}, ["odd"])
    written.save(tmp_path / "reference.npz")
    read = load(tmp_path / "reference.npz")
    assert list(read.cases) == cases
    assert (read.source, read.rounding, list(read.unknown)) == ("somebody", {"bfloat16": 0.001}, ["odd"])
    np.testing.assert_array_equal(read.vectors, written.vectors)
    assert [file.name for file in tmp_path.iterdir()] == ["reference.npz"]


def spoil(file: Path, how: str) -> None:
    whole = file.read_bytes()
    contents = {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"no reference", "flipped": whole[:200] + b"x"}
    file.write_bytes(contents[how])
    if how == "flipped":
        file.write_bytes(whole[:300] + bytes([whole[300] ^ 255]) + whole[301:])


@pytest.mark.parametrize("how", ["cut", "empty", "text", "flipped", "array", "other zip", "gone"])
def test_a_file_that_is_no_reference_is_refused_in_one_line(how: str, tmp_path: Path, shelf: ModelShelf) -> None:
    file = tmp_path / "reference.npz"
    reference().save(file)
    if how == "array":
        with file.open("wb") as opened:
            np.save(opened, np.ones(3))
    elif how == "other zip":
        with zipfile.ZipFile(file, "w") as made:
            made.writestr("ids.txt", "1")
    elif how == "gone":
        file.unlink()
    else:
        spoil(file, how)
    with pytest.raises(ModelError, match=r"^the reference reference\.npz can't be read \(\w+\)$"):
        load(file)
    with pytest.raises(ModelError, match=r"^(the|there is no) reference reference\.npz[^/\n]*$"):
        read_reference(file, read_model_files(str(shelf("bert"))))


def test_a_file_of_sentence_transformers_vectors_is_a_reference(tmp_path: Path, shelf: ModelShelf) -> None:
    model = SentenceTransformer(str(shelf("bert")), device="cpu")
    files = read_model_files(str(shelf("bert")))
    texts = ["a text", "[PAD] and 😀", "", "long " * 200]
    kinds = ["", "query", "passage", "query"]
    ways = {"": model.encode, "query": model.encode_query, "passage": model.encode_document}
    vectors = np.stack([ways[kind]([text])[0] for text, kind in zip(texts, kinds, strict=True)])
    np.savez(tmp_path / "given.npz", texts=texts, vectors=vectors, input_types=kinds)
    given = read_reference(tmp_path / "given.npz", files)
    assert given.source == "given.npz"
    assert [(case.text, case.input_type or "") for case in given.cases] == list(zip(texts, kinds, strict=True))
    answers = Oracle(str(shelf("bert")), None, files).embed(given.cases)
    assert judge(answers, given, "float32").largest < 1e-5
    np.savez(tmp_path / "plain.npz", texts=texts, vectors=model.encode(texts)[:, :16])
    plain = read_reference(tmp_path / "plain.npz", files)
    assert judge(Oracle(str(shelf("bert")), None, files).embed(plain.cases), plain, "float32").largest < 1e-5


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"texts": ["a", "b"], "vectors": np.ones((1, 4))}, "has 2 texts and vectors of shape (1, 4)"),
        ({"texts": ["a"], "vectors": np.ones(4)}, "has 1 texts and vectors of shape (4,)"),
        ({"texts": [], "vectors": np.ones((0, 4))}, "has 0 texts"),
        ({"texts": ["a"]}, "has no texts and vectors (KeyError)"),
        ({"vectors": np.ones((1, 4))}, "has no texts and vectors (KeyError)"),
        ({"texts": np.array(["a", None]), "vectors": np.ones((2, 4))}, "has no texts and vectors (ValueError)"),
        ({"texts": ["a"], "vectors": np.array(["x"])}, "has no texts and vectors (ValueError)"),
        ({"texts": ["a"], "vectors": np.ones((1, 4)), "input_types": ["document"]}, "input_types are not one of"),
        ({"texts": ["a"], "vectors": np.ones((1, 4)), "input_types": ["query"] * 2}, "input_types are not one of"),
    ],
)
def test_a_given_file_that_does_not_fit_is_refused(
    arrays: dict[str, object], problem: str, tmp_path: Path, shelf: ModelShelf
) -> None:
    np.savez(tmp_path / "given.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(ModelError) as refused:
        read_reference(tmp_path / "given.npz", read_model_files(str(shelf("bert"))))
    assert str(refused.value).startswith("the reference given.npz")
    assert problem in str(refused.value)


Find = Callable[..., Reference]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The models whose reference was computed, by a fake."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    models: list[str] = []

    def make(settings: ModelSettings, files: ModelFiles, complete: Path, file: Path, _: object) -> Reference:
        models.append(files.name)
        reference().save(file)
        return load(file)

    monkeypatch.setattr(store, "_make", make)
    return models


def find(folder: Path, **vllm: int) -> Reference:
    return store.find_reference(ModelSettings(model=str(folder), vllm=vllm), read_model_files(str(folder)))


@pytest.fixture
def folder(shelf: ModelShelf, tmp_path: Path) -> Path:
    return shutil.copytree(shelf("bert-cls"), tmp_path / "model")


def test_a_reference_is_computed_once_per_contents_of_a_folder(made: list[str], folder: Path, tmp_path: Path) -> None:
    first = find(folder)
    np.testing.assert_array_equal(find(folder).vectors, first.vectors)
    copy = shutil.copytree(folder, tmp_path / "another name", copy_function=shutil.copyfile)
    np.testing.assert_array_equal(find(copy).vectors, first.vectors)
    assert made == ["model"]


@pytest.mark.parametrize("file", ["model.safetensors", "1_Pooling/config.json", "tokenizer.json"])
def test_a_changed_byte_recomputes_the_reference(file: str, made: list[str], folder: Path) -> None:
    find(folder)
    contents = bytearray((folder / file).read_bytes())
    if file == "model.safetensors":
        contents[-1] ^= 1
    else:
        contents += b" "
    (folder / file).write_bytes(contents)
    find(folder)
    assert made == ["model", "model"]


def test_another_maximum_recomputes_the_reference(made: list[str], folder: Path) -> None:
    find(folder)
    find(folder, max_model_len=20)
    assert made == ["model", "model"]


def test_a_spoiled_file_of_the_cache_is_replaced(made: list[str], folder: Path, tmp_path: Path) -> None:
    find(folder)
    for how in ("cut", "empty"):
        [file] = (tmp_path / "cache").rglob("*.npz")
        spoil(file, how)
        find(folder)
    assert made == ["model"] * 3


def test_without_a_cache_the_reference_is_computed_every_time(
    made: list[str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        assert len(find(folder).cases) == CASES
    assert made == ["model", "model"]
    assert "the reference is not cached" in caplog.text


def test_a_reference_that_takes_too_long_is_requested_as_a_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "PRODUCTS_PER_CORE", 1.0)
    with pytest.raises(ModelError, match=r"^model: its reference would take about \d+ minutes.*\(--reference FILE\)"):
        find(folder)


def test_the_error_of_the_process_is_raised(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"^model: the model's weights lack encoder\.layer\.1\.output\.dense\.weight$"):
        find(folder)


@pytest.mark.parametrize(
    ("missing", "problem"),
    [
        (["encoder.layer.1.output.dense.weight"], r"lack encoder\.layer\.1\.output\.dense\.weight$"),
        (["pooler.dense.weight", "pooler.dense.bias"], None),
        ([f"encoder.layer.{n}.output.dense.bias" for n in (0, 1)], r"lack encoder\.layer\.0\S+, encoder\.layer\.1\S+$"),
    ],
)
def test_weights_that_a_vector_depends_on_are_required(missing: list[str], problem: str | None, folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if name not in missing}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    files = read_model_files(str(folder))
    if problem is None:
        assert Oracle(str(folder), None, files).embed([Case("one", ids(101, 102))]).any()
    else:
        with pytest.raises(ModelError, match=f"^model: the model's weights {problem}"):
            Oracle(str(folder), None, files)


def test_a_message_names_at_most_three_weights() -> None:
    names = [f"layer.{n}.weight" for n in range(9)]
    with pytest.raises(ModelError, match=r"^the model's weights lack \S+, \S+, layer\.2\.weight and 6 more$"):
        check_complete({"missing_keys": set(names), "mismatched_keys": set()})
    with pytest.raises(ModelError, match=r"^the model's weights have another shape of layer\.0\.weight$"):
        check_complete({"missing_keys": {"bert.pooler.dense.bias"}, "mismatched_keys": {(names[0], (1,), (2,))}})


def test_soft_caps_of_attention_are_in_the_reference(tmp_path: Path) -> None:
    """transformers' SDPA ignores them."""
    folder = write_decoder(tmp_path / "gemma2", "bge_gemma2")
    sentences = random_sentences(folder)[:3]
    cases = [Case(str(len(sentence)), sentence.tobytes()) for sentence in sentences]
    found = Oracle(str(folder), None, read_model_files(str(folder))).embed(cases)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    assert np.abs(found - expected_vectors(folder, sentences)).max() < 1e-6


def test_a_config_that_does_not_fit_the_weights_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    with pytest.raises(ModelError):
        Oracle(str(folder), None, read_model_files(str(folder)))


def test_a_verdict_of_nothing_is_right() -> None:
    assert Verdict(np.zeros(0), "", 0.1, 0).is_right
