"""The ensemble's vectors are the model's, whatever the other texts of a batch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc
import tritonclient.utils
from tests.integration.preloaded import Preloaded
from tests.integration.reference import cosines, reference_spans, reference_vectors
from tests.models import ModelShelf

from tritonembed import EmbeddingClient, InvalidArgumentError
from tritonembed_perf.server import RunningServer

Array = npt.NDArray[Any]

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "naïve", "Ünïcödé", "中文", "text", "😀"]
LONGEST = 64


def texts_of_many_lengths(count: int) -> list[str]:
    """Texts from empty to longer than the maximum."""
    rng = np.random.default_rng(3)
    return ["", *(" ".join(rng.choice(WORDS, n)) for n in rng.integers(1, 90, count - 1))]


KINDS = [
    ("bert-cls", "cls", False),
    ("modernbert", "cls", True),
    ("qwen3", "last", True),
]
"""Kinds of models, their pooling, and whether their vectors are normalised. tests/slow has more kinds."""


@pytest.mark.parametrize(("name", "pooling", "normalize"), KINDS)
def test_every_kind_of_model_gives_the_vectors_of_transformers(
    shelf: ModelShelf, preloaded: Preloaded, tmp_path: Path, name: str, pooling: str, normalize: bool
) -> None:
    """This runs tokenizer and engine alone. tests/slow compares their vectors through Triton."""
    folder = shelf(name)
    (tmp_path / "texts.json").write_text(json.dumps(texts_for(name)))
    done = preloaded.run("tests.integration.engine_vectors", folder, tmp_path / "texts.json", tmp_path / "found.npz")
    assert done.returncode == 0, done.stderr[-3000:]
    found = np.load(tmp_path / "found.npz")
    check_vectors(found["together"], found["num_tokens"], found["alone"], name, folder, pooling, normalize)
    check_executor(done.stderr)


def test_a_mean_pooled_model_gives_the_vectors_of_transformers(client: EmbeddingClient, model: Path) -> None:
    check_vectors_of_a_server(client, "bert", model, "mean", True)


def maximum_of(name: str) -> int:
    """The longest text of a model on the shelf, in tokens."""
    return 512 if name == "bert-cls" else LONGEST


def texts_for(name: str) -> list[str]:
    """Texts of every number of tokens up to the maximum. For all of these tokenizers, "a" is one token."""
    return [" ".join("a" * n) for n in range(maximum_of(name) + 1)] + texts_of_many_lengths(24)


def check_vectors_of_a_server(client: EmbeddingClient, name: str, folder: Path, pooling: str, normalize: bool) -> None:
    """Checks a server's vectors for a model on the shelf."""
    texts = texts_for(name)
    together, num_tokens = client.embed(texts)
    alone = client.embed(texts, batch_size=1).embeddings
    check_vectors(together, num_tokens, alone, name, folder, pooling, normalize)


def check_vectors(
    together: Array, num_tokens: Array, alone: Array, name: str, folder: Path, pooling: str, normalize: bool
) -> None:
    """The vectors equal transformers' at every length, and do not depend on the other texts of a batch."""
    maximum = maximum_of(name)
    assert set(num_tokens) >= set(range(2, maximum + 1))
    assert num_tokens.max() == maximum
    expected = reference_vectors(folder, texts_for(name), pooling, normalize, maximum)
    assert cosines(together, expected).min() >= 0.99999
    assert np.abs(together - expected).max() <= 1e-4
    assert np.abs(together - alone).max() <= 1e-5


def check_executor(log: str) -> None:
    """The direct executor serves. If the scheduler serves instead, the log has the reason."""
    assert "the scheduler executor serves" not in log, log


def test_any_number_of_texts_comes_back_in_order(client: EmbeddingClient) -> None:
    texts = [f"number {n}" for n in range(1500)]
    vectors = client.embed(texts, batch_size=64).embeddings
    for place in (0, 63, 64, 777, 1499):
        assert np.abs(vectors[place] - client.embed([texts[place]]).embeddings[0]).max() <= 1e-5


def test_token_ids_give_what_their_text_gives(client: EmbeddingClient, model) -> None:
    from transformers import AutoTokenizer

    texts = ["a text", "another, longer text"]
    ids = AutoTokenizer.from_pretrained(model)(texts).input_ids
    from_tokens, num_tokens = client.embed_tokens(ids)
    assert np.abs(from_tokens - client.embed(texts).embeddings).max() <= 1e-6
    assert num_tokens.tolist() == [len(sentence) for sentence in ids]


def test_input_type_prepends_the_models_own_prompt(client: EmbeddingClient) -> None:
    plain = client.embed(["find: cats", "text: cats"])
    assert np.allclose(client.embed(["cats"], input_type="query").embeddings[0], plain.embeddings[0], atol=1e-6)
    assert np.allclose(client.embed(["cats"], input_type="passage").embeddings[0], plain.embeddings[1], atol=1e-6)


@pytest.mark.parametrize(
    ("asked", "same_as"),
    [
        ({"prompt_name": "query"}, "find: cats"),
        ({"prompt_name": "document", "input_type": "query"}, "text: cats"),
        ({"prompt": "see "}, "see cats"),
        ({"prompt": "", "input_type": "query"}, "cats"),
    ],
)
def test_a_request_chooses_the_prompt(client: EmbeddingClient, asked: dict[str, Any], same_as: str) -> None:
    expected = client.embed([same_as])
    got = client.embed(["cats"], **asked)
    assert np.allclose(got.embeddings, expected.embeddings, atol=1e-6)
    assert got.num_tokens == expected.num_tokens


@pytest.mark.parametrize(
    "asked", [{"prompt_name": "secret"}, {"prompt_name": "query", "prompt": "secret"}, {"instruction": "secret"}]
)
def test_a_prompt_that_cannot_be_chosen_is_refused(client: EmbeddingClient, asked: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=r"prompt|instruction") as caught:
        client.embed(["cats"], **asked)
    assert "secret" not in str(caught.value)


def test_truncate_start_keeps_the_end_of_a_text(client: EmbeddingClient) -> None:
    long = " ".join(["before"] * 100 + ["after"] * 62)
    kept = client.embed([" ".join(["after"] * 62)]).embeddings
    assert np.allclose(client.embed([long], truncate="START").embeddings, kept, atol=1e-6)
    assert not np.allclose(client.embed([long], truncate="END").embeddings, kept, atol=1e-2)


LONG = [" ".join(["word"] * words) + "." for words in (40, 50, 30, 35)]
"""Sentences; no two of them fit into one chunk of 64 tokens."""


def weighted_mean(vectors: Array, weights: Array) -> Array:
    """The vector of a text whose chunks have these vectors and numbers of tokens."""
    mean: Array = np.average(vectors.astype(np.float64), axis=0, weights=weights)
    return mean / np.linalg.norm(mean)


def test_a_long_text_has_the_mean_of_its_chunks(client: EmbeddingClient, model: Path) -> None:
    tokens = [len(sentence.split()) + 3 for sentence in LONG]
    found, num_tokens = client.embed(["short", " ".join(LONG), "a text"], truncate="CHUNK")
    parts = reference_vectors(model, LONG, "mean", True, LONGEST)
    assert np.abs(found[1] - weighted_mean(parts, np.array(tokens))).max() <= 1e-5
    assert num_tokens.tolist() == [3, sum(tokens), 4]
    assert np.abs(found[[0, 2]] - client.embed(["short", "a text"]).embeddings).max() <= 1e-6
    prompted = client.embed([" ".join(LONG)], truncate="CHUNK", input_type="query", dimensions=32)
    cut = client.embed(LONG, input_type="query", dimensions=32)
    assert np.abs(prompted.embeddings[0] - weighted_mean(*cut)).max() <= 1e-5
    assert prompted.num_tokens == cut.num_tokens.sum()
    with pytest.raises(InvalidArgumentError, match="chunk_tokens: 65 is over the model's maximum of 64"):
        client.embed(LONG, truncate="CHUNK", chunk_tokens=65)


def test_each_chunk_has_a_vector_and_a_place(client: EmbeddingClient, model: Path) -> None:
    texts = [" ".join(LONG), "short", "naïve 😀 " * 60]
    found = client.embed_chunks(texts, chunk_tokens=60, chunk_overlap=5, dimensions=40)
    counts = np.bincount(found.text_index)
    assert counts.tolist() == [4, 1, counts[2]]
    assert counts[2] > 2
    rows = zip(found.text_index.tolist(), found.offsets.tolist(), strict=True)
    parts = [texts[index][start:end] for index, (start, end) in rows]
    assert parts[0] == LONG[0]
    assert parts[1].endswith(LONG[1])
    assert len(parts[1]) > len(LONG[1])
    expected = reference_vectors(model, parts, "mean", True, LONGEST)[:, :40]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.abs(found.embeddings - expected).max() <= 1e-5
    means = client.embed(texts, truncate="CHUNK", chunk_tokens=60, chunk_overlap=5, dimensions=40)
    for index, (mean, num_tokens) in enumerate(zip(*means, strict=True)):
        of_text = found.text_index == index
        assert np.abs(mean - weighted_mean(found.embeddings[of_text], found.num_tokens[of_text])).max() <= 1e-5
        assert num_tokens == found.num_tokens[of_text].sum()


def test_a_span_is_pooled_from_the_whole_text(client: EmbeddingClient, model: Path) -> None:
    texts = ["The first sentence. And naïve 😀 words, then a third one!", "a dog", " ".join(LONG[2:3])]
    spans = [[(0, 19), (20, 56), (0, 56)], [(2, 5)], [(0, 30), (30, 150)]]
    expected, num_tokens = reference_spans(model, texts, spans)
    found = client.embed_spans(texts, spans)
    assert np.abs(found.embeddings - expected).max() <= 1e-5
    assert found.num_tokens.tolist() == num_tokens
    assert found.text_index.tolist() == [0, 0, 0, 1, 2, 2]
    assert found.offsets.tolist() == [[*span] for of_text in spans for span in of_text]
    with pytest.raises(InvalidArgumentError, match="spans: span 0 of sentence 0 is not within its 5 characters"):
        client.embed_spans(["a dog"], [[(0, 6)]])


def test_tritons_client_gets_chunks_if_it_asks_for_them(server: RunningServer, client: EmbeddingClient) -> None:
    long = " ".join(LONG).encode()
    tensor = tritonclient.grpc.InferInput("text", [2, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[long], [b"short"]], dtype=object))
    short = tritonclient.grpc.InferInput("text", [1, 1], "BYTES")
    short.set_data_from_numpy(np.array([[b"short"]], dtype=object))
    chunked = client.embed_chunks([long.decode(), "short"])
    with tritonclient.grpc.InferenceServerClient(server.target) as triton:
        answer = triton.infer("embedding_chunks", [tensor], parameters={"truncate": "CHUNK"})
        names = {output.name for output in answer.get_response().outputs}
        assert names == {"chunk_embeddings", "chunk_spans", "num_tokens"}
        vectors = np.frombuffer(b"".join(answer.as_numpy("chunk_embeddings").ravel()), "<f4").reshape(5, -1)
        assert np.abs(vectors - chunked.embeddings).max() <= 1e-6
        spans = np.frombuffer(b"".join(answer.as_numpy("chunk_spans").ravel()), "<i4").reshape(5, 3)
        assert np.array_equal(spans, np.column_stack((chunked.offsets, chunked.num_tokens)))
        assert answer.as_numpy("num_tokens").ravel().tolist() == [chunked.num_tokens[:4].sum(), 3]
        with pytest.raises(tritonclient.utils.InferenceServerException, match="truncate: must be CHUNK"):
            triton.infer("embedding_chunks", [tensor])
        with pytest.raises(tritonclient.utils.InferenceServerException, match="spans: are for the model"):
            triton.infer("embedding", [short], parameters={"spans": "[[[0, 5]]]"})
        # Everyone else gets no chunks, also if they name no output.
        names = {output.name for output in triton.infer("embedding", [tensor]).get_response().outputs}
        assert names == {"embedding", "num_tokens", "sparse", "multi_vector"}
        ids = tritonclient.grpc.InferInput("token_ids", [1, 1], "BYTES")
        ids.set_data_from_numpy(np.array([[np.array([101, 102], "<i4").tobytes()]], dtype=object))
        names = {output.name for output in triton.infer("embedder", [ids]).get_response().outputs}
        assert names == {"embedding", "num_tokens", "embedding_space", "sparse", "multi_vector"}


def test_dimensions_shorten_and_then_normalise_again(client: EmbeddingClient) -> None:
    whole = client.embed(["one text"]).embeddings
    for dimensions in (1, 13, 64):
        cut = whole[:, :dimensions] / np.linalg.norm(whole[:, :dimensions], axis=1, keepdims=True)
        assert np.allclose(client.embed(["one text"], dimensions=dimensions).embeddings, cut, atol=1e-6)


def test_every_embedding_type_equals_numpys_conversion_of_the_floats(client: EmbeddingClient) -> None:
    texts = texts_of_many_lengths(12)
    x = client.embed(texts, dimensions=60).embeddings
    bits = np.packbits(x > 0, axis=1)
    int8 = np.clip(np.rint(x * 127), -127, 127)
    expected = {
        "float16": x.astype(np.float16),
        "int8": int8.astype(np.int8),
        "uint8": (int8 + 128).astype(np.uint8),
        "ubinary": bits,
        "binary": (bits.astype(np.int16) - 128).astype(np.int8),
    }
    for embedding_type, rows in expected.items():
        got = client.embed(texts, dimensions=60, embedding_type=embedding_type).embeddings
        assert got.dtype == rows.dtype
        assert got.shape == rows.shape
        assert np.array_equal(got, rows), embedding_type


def test_normalize_false_gives_the_pooled_vectors(client: EmbeddingClient) -> None:
    raw = client.embed(["one text"], normalize=False).embeddings
    assert abs(np.linalg.norm(raw) - 1) > 1e-3
    assert cosines(raw, client.embed(["one text"]).embeddings)[0] > 0.999999
