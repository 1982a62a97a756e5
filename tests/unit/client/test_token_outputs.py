"""The client asks for sparse and multi-vector outputs, and reads them."""

import json
import struct

import numpy as np
import pytest
from tests.unit.client.fake_server import elements, parameters, respond
from tritonclient.utils import serialize_byte_tensor

from tritonembed import EmbeddingClient, InvalidArgumentError, ServerError, SparseVector, maxsim
from tritonembed.cli.app import run


def sparse_of(*pairs, tokens=None):
    ids, weights = zip(*pairs, strict=True) if pairs else ((), ())
    count = len(pairs)
    element = struct.pack(f"<i{count}i{count}f", count, *ids, *weights)
    return element + (json.dumps(tokens).encode() if tokens is not None else b"")


def answer_of(request, **tensors):
    """One vector per text as `embedding` (empty if it is not asked for), and these tensors."""
    count = len(elements(request))
    asked = parameters(request).get("outputs", "dense").split(",")
    vectors = [np.ones(3, "<f4").tobytes() if "dense" in asked else b""] * count
    response = respond(vectors, [2] * count)
    for name, rows in tensors.items():
        array = np.empty(count, dtype=object)
        array[:] = rows(count)
        response.outputs.add(name=name, datatype="BYTES", shape=(count, 1))
        response.raw_output_contents.append(serialize_byte_tensor(array).item())
    return response


def all_outputs(request, _context=None):
    vectors = np.arange(6, dtype="<f4").reshape(2, 3)
    return answer_of(
        request,
        sparse=lambda count: [sparse_of((3, 0.5), (9, 2.0), tokens=["a", "ß"])] * count,
        multi_vector=lambda count: [struct.pack("<i", 2) + vectors.tobytes()] * count,
    )


def test_all_outputs_come_in_one_request_per_batch(server):
    server.infer = all_outputs
    options = {"outputs": ["multi_vector", "dense", "sparse"], "top_k": 5, "sparse_threshold": 0.25}
    with EmbeddingClient(server.target) as client:
        result = client.embed(["a", "b", "c"], batch_size=2, return_tokens=True, **options)
    assert len(server.requests) == 2
    assert [output.name for output in server.requests[0].outputs] == [
        *("embedding", "sparse", "multi_vector", "num_tokens")
    ]
    asked = {"outputs": "dense,sparse,multi_vector", "top_k": 5, "sparse_threshold": 0.25, "return_tokens": True}
    assert parameters(server.requests[0]) == asked
    assert result.embeddings.shape == (3, 3)
    assert [vector.as_dict() for vector in result.sparse] == [{3: 0.5, 9: 2.0}] * 3
    assert result.sparse[2].tokens == ("a", "ß")
    assert [vectors.tolist() for vectors in result.multi_vector] == [[[0, 1, 2], [3, 4, 5]]] * 3


def test_without_dense_there_are_no_embeddings(server):
    server.infer = all_outputs
    with EmbeddingClient(server.target) as client:
        result = client.embed(["a"], outputs="sparse")
        none = client.embed([], outputs="sparse")
    assert result.embeddings.shape == (1, 0)
    assert result.multi_vector is None
    assert (none.embeddings.shape, none.sparse, none.multi_vector) == ((0, 0), [], None)


def test_vectors_of_tokens_have_the_dtype_that_is_asked_for(server):
    rows = [struct.pack("<i4b", 2, 1, -2, 3, 4), struct.pack("<i", 0)]
    server.infer = lambda request, _context: answer_of(request, multi_vector=lambda count: rows)
    with EmbeddingClient(server.target) as client:
        result = client.embed(["a", "b"], outputs="multi_vector", embedding_type="int8")
    assert [vectors.tolist() for vectors in result.multi_vector] == [[[1, -2], [3, 4]], []]
    assert {vectors.dtype for vectors in result.multi_vector} == {np.dtype(np.int8)}


@pytest.mark.parametrize("outputs", ["", "dense,", "all", "dense,dense", [], [None], ["sparse", "x"]])
def test_wrong_outputs_are_refused_before_a_request(server, outputs):
    with (
        EmbeddingClient(server.target) as client,
        pytest.raises(InvalidArgumentError, match="outputs must be one or more of dense, sparse, multi_vector"),
    ):
        client.embed(["a"], outputs=outputs)
    assert not server.requests


@pytest.mark.parametrize(
    ("options", "problem"),
    [({"top_k": 0}, "top_k must be at least 1"), ({"sparse_threshold": -1}, "sparse_threshold must be a number")],
)
def test_wrong_numbers_are_refused_before_a_request(server, options, problem):
    with EmbeddingClient(server.target) as client, pytest.raises(InvalidArgumentError, match=problem):
        client.embed(["a"], outputs="sparse", **options)
    assert not server.requests


@pytest.mark.parametrize(
    ("tensor", "element", "problem"),
    [
        ("sparse", b"", "shorter than its count"),
        ("sparse", struct.pack("<i", 5), "shorter than its count"),
        ("sparse", sparse_of((1, 1.0), tokens=["a", "b"]), "the tokens of an element do not fit"),
        ("sparse", sparse_of((1, 1.0)) + b"\xff", "the tokens of an element do not fit"),
        ("multi_vector", b"", "not a count and vectors"),
        ("multi_vector", struct.pack("<i3f", 2, 1, 2, 3), "not a count and vectors"),
        ("multi_vector", struct.pack("<i3f", 0, 1, 2, 3), "not a count and vectors|the number of dimensions"),
    ],
)
def test_bytes_that_are_no_output_are_an_error(server, tensor, element, problem):
    server.infer = lambda request, _context: answer_of(request, **{tensor: lambda count: [element] * count})
    with EmbeddingClient(server.target) as client, pytest.raises(ServerError, match=problem):
        client.embed(["a", "b"], outputs=tensor)


def test_a_model_without_dense_vectors_says_so(server):
    server.infer = lambda request, _context: respond([b"", b""], [1, 1])
    with (
        EmbeddingClient(server.target) as client,
        pytest.raises(InvalidArgumentError, match="the model gives no dense vectors: ask for its outputs"),
    ):
        client.embed(["a", "b"])


def test_sparse_scores_are_dot_products():
    one = SparseVector(np.array([2, 5, 9], np.int32), np.array([1, 2, 3], np.float32))
    other = SparseVector(np.array([1, 5, 9], np.int32), np.array([7, 10, 0.5], np.float32))
    assert one.dot(other) == pytest.approx(21.5)
    assert one.dot(SparseVector(np.empty(0, np.int32), np.empty(0, np.float32))) == 0.0


def test_maxsim_is_sentence_transformers():
    import torch
    from sentence_transformers.util.similarity import maxsim as theirs

    rng = np.random.default_rng(0)
    query = rng.standard_normal((5, 8)).astype(np.float32)
    documents = [rng.standard_normal((tokens, 8)).astype(np.float32) for tokens in (3, 1, 7)]
    expected = [float(theirs([torch.from_numpy(query)], [torch.from_numpy(one)])[0, 0]) for one in documents]
    found = maxsim(query, [*documents, np.empty((0, 8), np.float32)])
    np.testing.assert_allclose(found, [*expected, 0.0], rtol=1e-6)


@pytest.fixture
def command(server, capfdbinary):
    """Runs `tritonembed embed` against the fake server. Returns its exit code, standard output and standard error."""

    def call(*arguments):
        server.infer = all_outputs
        with pytest.raises(SystemExit) as caught:
            run(["--port", str(server.port), "--host", "127.0.0.1", "embed", *map(str, arguments)])
        out, err = capfdbinary.readouterr()
        return caught.value.code, out.decode(), err.decode()

    return call


def test_the_command_shows_the_heaviest_tokens_and_the_size_of_the_vectors(command):
    code, out, _ = command("a text", "--outputs", "dense,sparse,multi_vector", "--return-tokens")
    assert code == 0
    assert (
        out == "0  2 tokens  float32[3] (+1.0000, +1.0000, +1.0000)  2 weights (ß: 2.0000, a: 0.5000)  2 x float32[3]\n"
    )


def test_the_command_writes_json_lines(command, server, tmp_path):
    file = tmp_path / "out.jsonl"
    code, _, err = command("a", "b", "--outputs", "sparse,multi_vector", "--top-k", 7, "--output", file)
    assert (code, "sampling" in err) == (0, False)
    assert parameters(server.requests[-1])["top_k"] == 7
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert [line["index"] for line in lines] == [0, 1]
    assert lines[1] == {
        "index": 1,
        "num_tokens": 2,
        "sparse": {"ids": [3, 9], "weights": [0.5, 2.0], "tokens": ["a", "ß"]},
        "multi_vector": [[0, 1, 2], [3, 4, 5]],
    }


def test_the_command_refuses_files_that_hold_dense_vectors_only(command, server, tmp_path):
    code, _, err = command("a", "--outputs", "sparse", "--output", tmp_path / "out.npy")
    assert code == 2
    assert "--outputs: only .jsonl files hold sparse weights and vectors of tokens" in err
    assert not server.requests
