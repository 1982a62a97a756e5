"""Sparse weights and token vectors are FlagEmbedding's, and every request gets those that it asks for."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tests.unit.engine.fake_executor import FakeExecutor, ids, request_of

from tritonembed_engine.engine import EmbeddingEngine
from tritonembed_engine.errors import ExecutionFailed, InvalidArgument, ModelError
from tritonembed_engine.executors import token_heads
from tritonembed_engine.executors.building import heads_of
from tritonembed_engine.executors.loading import filler_id
from tritonembed_engine.executors.pooling import Pooler
from tritonembed_engine.executors.token_heads import TokenHeads
from tritonembed_engine.executors.transformers_executor import (
    GROUPING,
    TransformersExecutor,
    load_encoder,
)
from tritonembed_engine.model.files import ModelFiles, read_model_files
from tritonembed_engine.model.space import embedding_space
from tritonembed_engine.model.steps import Steps
from tritonembed_engine.model.token_outputs import TokenOutputs, read_token_outputs
from tritonembed_engine.parameters import EmbedParameters
from tritonembed_engine.ragged import WEIGHT, Ragged, heaviest_by_id
from tritonembed_engine.settings import ModelSettings
from tritonembed_engine.token_ids import Spans, TokenIds
from tritonembed_engine.tokenizing.text_tokenizer import TextTokenizer
from tritonembed_engine.tokenizing.token_choice import TokenChoice, asked_outputs
from tritonembed_engine.vectors import multi_vector_elements, sparse_elements
from tritonembed_perf.families.registry import load_cases

ALL = ("dense", "sparse", "multi_vector")
TEXTS = ["", "one", "one one two one", "naïve café 中文 😀", "river engine " * 30, "x <s> </s> <pad> <unk> y"]

Array = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def bge_m3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bge-m3 with random heads."""
    folder = tmp_path_factory.mktemp("bge") / "bge-m3"
    folder.mkdir()
    load_cases()["bge_m3"].write(folder)
    return folder


@pytest.fixture(scope="module")
def files(bge_m3: Path) -> ModelFiles:
    return read_model_files(str(bge_m3))


@pytest.fixture(scope="module")
def executor(files: ModelFiles) -> TransformersExecutor:
    settings = ModelSettings.model_validate({"model": str(files.folder), "engine": {"executor": "transformers"}})
    model = load_encoder(settings, files, "cpu")
    heads = TokenHeads(files.token_outputs, files.hidden_size)
    pooler = Pooler(files.pooling, Steps(files.steps))
    return TransformersExecutor(model, pooler, 4096, 64, filler_id(files), GROUPING["cpu"], heads)


def flag_embedding(folder: Path, text_ids: npt.NDArray[np.int32]) -> tuple[dict[int, float], Array]:
    """FlagEmbedding's weights and vectors of a text, by its own formulas (inference/embedder/encoder_only/m3.py)."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        hidden = model(input_ids=torch.from_numpy(text_ids.astype(np.int64))[None]).last_hidden_state[0]
        layers = [torch.load(folder / f"{name}_linear.pt", weights_only=True) for name in ("sparse", "colbert")]
        weights = torch.relu(hidden @ layers[0]["weight"].T + layers[0]["bias"])[:, 0]
        vectors = hidden[1:] @ layers[1]["weight"].T + layers[1]["bias"]
        vectors = torch.nn.functional.normalize(vectors, dim=-1)
    unused = {tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
    found: dict[int, float] = {}
    for weight, token in zip(weights.tolist(), text_ids.tolist(), strict=True):
        if token not in unused and weight > 0:
            found[token] = max(found.get(token, 0.0), weight)
    return found, vectors.numpy()


def test_bge_m3s_weights_and_vectors_are_flag_embeddings(
    bge_m3: Path, files: ModelFiles, executor: TransformersExecutor
) -> None:
    choice = TokenChoice(files)
    answer = TextTokenizer(files).encode_requests([([text.encode() for text in TEXTS], EmbedParameters())])[0]
    assert isinstance(answer, list)
    sentences = TokenIds.join(answer)
    assert choice.outputs_of(EmbedParameters(outputs=ALL)) == ALL
    pending = executor.launch(sentences, choices=choice.choose(EmbedParameters(), ALL, sentences))
    np.testing.assert_allclose(pending.result(), executor.launch(sentences).result(), atol=1e-5)
    sparse = sparse_elements(pending.token_outputs["sparse"], EmbedParameters(return_tokens=True), choice.token)
    vectors = multi_vector_elements(pending.token_outputs["multi_vector"], EmbedParameters(), choice.normalize)
    for text_ids, element, rows in zip(sentences, sparse, vectors, strict=True):
        weights, expected = flag_embedding(bge_m3, text_ids)
        found, tokens = read_sparse(element)
        assert sorted(found) == sorted(weights)
        assert found == pytest.approx(weights, abs=1e-4)
        assert len(tokens) == len(found)
        np.testing.assert_allclose(np.frombuffer(rows, "<f4", offset=4).reshape(expected.shape), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["splade", "splade_distilbert", "splade_log1p", "splade_sum"])
def test_splades_weights_are_sentence_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """perf/tritonembed_perf/families has more layouts, through the direct executor."""
    from sentence_transformers import SparseEncoder

    # Several parts of this small vocabulary, the last of them shorter.
    monkeypatch.setitem(token_heads.IDS_AT_ONCE, "cpu", 100)
    load_cases()[name].write(tmp_path)
    files = read_model_files(str(tmp_path))
    choice = TokenChoice(files)
    settings = ModelSettings.model_validate({"model": str(tmp_path), "engine": {"executor": "transformers"}})
    pooler = Pooler(files.pooling, Steps(files.steps))
    model = load_encoder(settings, files, "cpu")
    executor = TransformersExecutor(model, pooler, 4096, 64, 0, GROUPING["cpu"], heads_of(files))
    answer = TextTokenizer(files).encode_requests([([text.encode() for text in TEXTS], EmbedParameters())])[0]
    assert isinstance(answer, list)
    sentences = TokenIds.join(answer)
    assert choice.outputs_of(EmbedParameters()) == ("sparse",)
    pending = executor.launch(sentences, choices=choice.choose(EmbedParameters(), ("sparse",), sentences))
    expected = SparseEncoder(str(tmp_path), device="cpu").encode(TEXTS, convert_to_sparse_tensor=False).numpy()
    for element, row in zip(
        sparse_elements(pending.token_outputs["sparse"], EmbedParameters(), str), expected, strict=True
    ):
        found = np.zeros_like(row)
        weights = read_sparse(element)[0]
        found[list(weights)] = list(weights.values())
        np.testing.assert_allclose(found, row, atol=1e-4)


def read_sparse(element: bytes) -> tuple[dict[int, float], list[str]]:
    count = int.from_bytes(element[:4], "little")
    ids_end, end = 4 + 4 * count, 4 + 8 * count
    found = np.frombuffer(element[4:ids_end], "<i4").tolist()
    assert found == sorted(set(found))
    weights = np.frombuffer(element[ids_end:end], "<f4").tolist()
    return dict(zip(found, weights, strict=True)), json.loads(element[end:] or "[]")


def test_spans_and_token_outputs_share_a_batch(tmp_path: Path) -> None:
    load_cases()["roberta_mean"].write(tmp_path)
    for name in ("sparse_linear.pt", "colbert_linear.pt"):
        torch.save({"weight": torch.randn(1, 64), "bias": torch.randn(1)}, tmp_path / name)
    files = read_model_files(str(tmp_path))
    settings = ModelSettings.model_validate({"model": str(tmp_path), "engine": {"executor": "transformers"}})
    heads = TokenHeads(files.token_outputs, files.hidden_size)
    pooler = Pooler(files.pooling, Steps(files.steps))
    model = load_encoder(settings, files, "cpu")
    executor = TransformersExecutor(model, pooler, 4096, 64, 1, GROUPING["cpu"], heads)
    sentences = TokenIds.join([ids(0, 5, 6, 7, 2), ids(0, 9, 2)])
    spans = Spans(np.array([2, 1]), np.array([1, 2, 0], np.int32), np.array([2, 4, 3], np.int32))
    choices = TokenChoice(files).choose(EmbedParameters(), ("multi_vector",), sentences)
    both = executor.launch(sentences, None, spans, choices)
    np.testing.assert_allclose(both.result(), executor.launch(sentences, None, spans).result(), atol=1e-5)
    assert both.token_outputs["multi_vector"].counts.tolist() == [4, 2]


def test_the_space_of_a_model_depends_on_its_heads(bge_m3: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(bge_m3, tmp_path / "other")
    torch.save({"weight": torch.ones(1, 64), "bias": torch.ones(1)}, tmp_path / "other" / "sparse_linear.pt")
    spaces = set()
    for folder in (bge_m3, tmp_path / "other"):
        settings = ModelSettings(model=str(folder))
        spaces.add(embedding_space(settings, read_model_files(str(folder)), "float32"))
    assert len(spaces) == 2


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ({"weight": torch.ones(1, 3), "bias": torch.ones(1)}, "are not those of a linear layer of 64 inputs"),
        ({"weight": torch.ones(2, 64), "bias": torch.ones(2)}, "are not those of a linear layer of 64 inputs"),
        ({"bias": torch.ones(1)}, r"can't be read \(KeyError\)"),
        (None, "can't be read"),
    ],
)
def test_heads_of_another_shape_stop_the_start(tmp_path: Path, state: object, problem: str) -> None:
    file = tmp_path / "sparse_linear.pt"
    torch.save(state, file) if state else file.write_bytes(b"half a file")
    with pytest.raises(ModelError, match=f"the weights in sparse_linear.pt {problem}"):
        TokenHeads(read_token_outputs(tmp_path), 64)


@pytest.mark.parametrize(
    ("parameters", "names", "problem"),
    [
        ({"outputs": ("sparse",)}, ("dense",), "outputs: the model gives dense, not sparse"),
        ({"outputs": ("dense",)}, ("sparse",), "outputs: the model gives sparse, not dense"),
        ({"top_k": 3}, ALL, "top_k: is for the output sparse, which is not asked for"),
        ({"return_tokens": True}, ALL, "return_tokens: is for the output sparse, which is not asked for"),
        ({"outputs": ("sparse",), "truncate": "CHUNK"}, ALL, "outputs: a text in chunks or spans has dense vectors"),
    ],
)
def test_outputs_that_a_request_cant_have_are_refused(
    parameters: dict[str, object], names: tuple[str, ...], problem: str
) -> None:
    with pytest.raises(InvalidArgument, match=problem):
        asked_outputs(EmbedParameters(**parameters), names)  # type: ignore[arg-type]


def test_without_outputs_a_request_gets_the_models_first() -> None:
    assert asked_outputs(EmbedParameters(), ALL) == ("dense",)
    assert asked_outputs(EmbedParameters(), ("sparse",)) == ("sparse",)
    assert TokenOutputs().names == ("dense",)


def test_the_heaviest_weight_of_an_id_counts_and_zero_is_left_out() -> None:
    found = heaviest_by_id(
        np.array([4, 0, 2]), np.array([7, 3, 7, 9, 7, 7], np.int32), np.array([1, 2, 3, 0, -1, 0.5], np.float32)
    )
    assert found.counts.tolist() == [2, 0, 1]
    assert found.rows.tolist() == [(3, 2.0), (7, 3.0), (7, 0.5)]
    assert not heaviest_by_id(np.array([1]), np.array([1], np.int32), np.array([np.nan], np.float32)).is_finite()


def weights_of(*sentences: dict[int, float]) -> Ragged:
    rows = np.array([pair for one in sentences for pair in one.items()], WEIGHT)
    return Ragged(np.array([len(one) for one in sentences]), rows)


def test_top_k_and_the_threshold_leave_out_small_weights() -> None:
    found = weights_of({1: 0.5, 2: 0.25, 5: 1.0, 9: 0.25}, {}, {4: 0.1})
    kept = [
        [read_sparse(element)[0] for element in sparse_elements(found, parameters, str)]
        for parameters in (EmbedParameters(top_k=3), EmbedParameters(sparse_threshold=0.25))
    ]
    assert kept[0] == [{1: 0.5, 2: 0.25, 5: 1.0}, {}, pytest.approx({4: 0.1})]
    assert kept[1] == [{1: 0.5, 5: 1.0}, {}, {}]


def test_of_equal_weights_those_of_the_smaller_ids_are_kept() -> None:
    weights = np.random.default_rng(0).integers(1, 9, 200) / 8
    found = weights_of(dict(enumerate(weights.tolist())))
    for count in (1, 40, 199):
        (element,) = sparse_elements(found, EmbedParameters(top_k=count), str)
        ranked = sorted(range(200), key=lambda one: (-weights[one], one))
        assert list(read_sparse(element)[0]) == sorted(ranked[:count])


@pytest.mark.parametrize(("kind", "size"), [("float", 16), ("float16", 8), ("int8", 4), ("binary", 1)])
def test_token_vectors_come_in_the_type_that_is_asked_for(kind: str, size: int) -> None:
    found = Ragged(np.array([2, 1]), np.array([[3, 0, 4, 0], [0, 1, 0, 0], [1, 1, 1, 1]], np.float32))
    elements = multi_vector_elements(found, EmbedParameters(embedding_type=kind), True)
    assert [(element[0], len(element)) for element in elements] == [(2, 4 + 2 * size), (1, 4 + size)]
    if kind == "float":
        assert np.frombuffer(elements[0], "<f4", offset=4).tolist()[:4] == pytest.approx([0.6, 0, 0.8, 0])


@pytest.mark.parametrize("normalize", [True, False])
def test_vectors_that_the_device_divided_by_their_lengths_are_the_same(normalize: bool) -> None:
    vectors = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    vectors[3] = 0
    lengths = np.linalg.norm(vectors, axis=1)
    plain = Ragged(np.array([2, 3]), vectors)
    divided = Ragged(np.array([2, 3]), vectors / np.maximum(lengths, 1e-12)[:, None], lengths)
    parts = Ragged.concatenate([divided.cut(0, 1), divided.cut(1, 2)])
    parameters = EmbedParameters(normalize=normalize)
    wanted = multi_vector_elements(plain, parameters, True)
    for found in (divided, parts):
        for element, other in zip(multi_vector_elements(found, parameters, True), wanted, strict=True):
            assert element[:4] == other[:4]
            np.testing.assert_allclose(np.frombuffer(element, "<f4", offset=4), np.frombuffer(other, "<f4", offset=4),
                                       rtol=1e-6)  # fmt: skip
    lengths[1] = np.nan
    assert not divided.is_finite()
    assert divided.cut(1, 2).is_finite()


def tokens_as_rows(sentences: TokenIds, choices: dict[str, npt.NDArray[np.bool_]]) -> dict[str, Ragged]:
    """A fake output: the ids of the chosen tokens."""
    starts = np.cumsum(sentences.lengths) - sentences.lengths
    return {
        name: Ragged(np.add.reduceat(chosen, starts, dtype=np.int64), sentences.ids[chosen][:, None].astype(np.float32))
        for name, chosen in choices.items()
    }


def test_requests_of_one_batch_get_what_each_asks_for_also_over_several_batches() -> None:
    executor = FakeExecutor(max_batch_tokens=6, max_batch_sentences=8)
    executor.token_outputs = tokens_as_rows  # type: ignore[assignment]
    engine = EmbeddingEngine(executor)  # type: ignore[arg-type]
    large = [ids(1, 2, 3), ids(4, 5), ids(6, 7, 8), ids(9, 10)]
    chosen = np.array([True, False, True, True, True, False, False, False, True, True])
    asking = request_of(large, choices={"multi_vector": chosen})
    plain, sparse = request_of([ids(11, 12)]), request_of([ids(13)], choices={"sparse": np.array([True])})
    for future in engine.submit_all([asking, plain, sparse]):
        future.result(10)
    engine.close()
    rows = asking.token_outputs["multi_vector"]
    assert rows.rows[:, 0].tolist() == [1, 3, 4, 5, 9, 10]
    assert rows.counts.tolist() == [2, 2, 0, 2]
    assert not plain.token_outputs
    assert list(sparse.token_outputs) == ["sparse"]
    assert sparse.token_outputs["sparse"].rows.tolist() == [[13.0]]


def test_a_token_vector_that_is_not_finite_fails_its_request_alone() -> None:
    executor = FakeExecutor(max_batch_tokens=10)
    executor.token_outputs = lambda sentences, choices: {
        name: Ragged(np.ones(len(sentences), np.int64), np.array([[np.nan], [1.0]], np.float32)[: len(sentences)])
        for name in choices
    }
    engine = EmbeddingEngine(executor)  # type: ignore[arg-type]
    bad, good = (request_of([ids(1)], choices={"multi_vector": np.array([True])}) for _ in range(2))
    futures = engine.submit_all([bad, good])
    with pytest.raises(ExecutionFailed, match="not finite"):
        futures[0].result(10)
    futures[1].result(10)
    engine.close()
