"""The chunks of texts: which vectors and places the client reads, and which answers it refuses."""

import json

import numpy as np
import pytest
from tests.unit.client.fake_server import DTYPES, elements, parameters
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor

from tritonembed import AsyncEmbeddingClient, InvalidArgumentError, ServerError

WIDTH = 6


def bytes_tensor(parts):
    array = np.empty(len(parts), dtype=object)
    array[:] = parts
    return serialize_byte_tensor(array).item()


def answer(vectors, spans, outputs=("chunk_embeddings", "chunk_spans")):
    response = service_pb2.ModelInferResponse(model_name="embedding_chunks", model_version="1")
    for output, parts in zip(outputs, (vectors, spans), strict=True):
        response.outputs.add(name=output, datatype="BYTES", shape=(len(parts), 1))
        response.raw_output_contents.append(bytes_tensor(parts))
    return response


def words(request, _context=None):
    """Each word of a text is a chunk, whose vector repeats the word, a number."""
    vectors, spans = [], []
    dtype = DTYPES[parameters(request).get("embedding_type", "float")]
    for text in elements(request):
        found, places, at = [], [], 0
        for word in text.decode().split():
            found.append(np.full(WIDTH, int(word), dtype).tobytes())
            places.append((at, at + len(word), 2 + len(word)))
            at += len(word) + 1
        vectors.append(b"".join(found))
        spans.append(np.array(places, "<i4").tobytes())
    return answer(vectors, spans)


@pytest.fixture
def chunked(server):
    server.infer = words
    return server


async def test_every_chunk_has_its_vector_place_and_text(client, chunked):
    texts = ["1 22 3", "4", "55 6"]
    for batch_size in (1, 2, 64):
        result = client.embed_chunks(texts, batch_size=batch_size)
        assert result.embeddings.dtype == np.float32
        assert result.embeddings[:, 0].tolist() == [1, 22, 3, 4, 55, 6]
        assert result.embeddings.shape == (6, WIDTH)
        assert result.text_index.tolist() == [0, 0, 0, 1, 2, 2]
        places = zip(result.text_index.tolist(), result.offsets.tolist(), strict=True)
        assert [texts[index][start:end] for index, (start, end) in places] == ["1", "22", "3", "4", "55", "6"]
        assert result.num_tokens.tolist() == [3, 4, 3, 3, 4, 3]
        async with AsyncEmbeddingClient(chunked.target) as opened:
            theirs = await opened.embed_chunks(iter(texts), batch_size=batch_size)
        for name in ("embeddings", "text_index", "offsets", "num_tokens"):
            assert np.array_equal(getattr(result, name), getattr(theirs, name))


def test_chunks_are_asked_of_their_own_model(client, chunked):
    result = client.embed_chunks(["1 2"], chunk_tokens=32, chunk_overlap=4, input_type="query", embedding_type="int8")
    [request] = chunked.requests
    assert request.model_name == "embedding_chunks"
    assert [output.name for output in request.outputs] == ["chunk_embeddings", "chunk_spans"]
    sizes = {"chunk_tokens": 32, "chunk_overlap": 4}
    assert parameters(request) == {"truncate": "CHUNK", **sizes, "input_type": "query", "embedding_type": "int8"}
    assert result.embeddings.dtype == np.int8


def test_no_texts_have_no_chunks_of_the_servers_width(client, server):
    result = client.embed_chunks([], chunk_tokens=32)
    assert result.embeddings.shape == (0, 10)
    assert result.offsets.shape == (0, 2)
    assert (len(result.text_index), len(result.num_tokens)) == (0, 0)
    assert parameters(server.requests[0]) == {"truncate": "CHUNK", "chunk_tokens": 32}


def len_of(request):
    return len(elements(request))


async def test_the_spans_of_each_text_are_sent_with_it(client, chunked):
    texts, spans = ["1 2", "3", "4 5"], [[(0, 1), (2, 3)], [(0, 1)], [(np.int64(0), 1), (2, 3)]]
    for given in (spans, iter(spans)):
        result = client.embed_spans(iter(texts), given, batch_size=2, input_type="query")
        assert result.embeddings[:, 0].tolist() == [1, 2, 3, 4, 5]
        assert result.text_index.tolist() == [0, 0, 1, 2, 2]
        sent = [parameters(request) for request in sorted(chunked.requests[-2:], key=len_of, reverse=True)]
        assert [json.loads(one["spans"]) for one in sent] == [[[[0, 1], [2, 3]], [[0, 1]]], [[[0, 1], [2, 3]]]]
        assert [set(one) for one in sent] == [{"spans", "input_type"}] * 2
    async with AsyncEmbeddingClient(chunked.target) as opened:
        theirs = await opened.embed_spans(texts, spans)
    assert np.array_equal(theirs.embeddings, result.embeddings)


def test_spans_that_cannot_be_are_refused(client, chunked):
    with pytest.raises(ValueError, match="spans has fewer elements than texts"):
        client.embed_spans(["1", "2"], [[(0, 1)]])
    with pytest.raises(TypeError):
        client.embed_spans(["1"], [[(0, "secret")]])
    with pytest.raises(TypeError, match="unexpected keyword argument 'chunk_tokens'"):
        client.embed_spans(["1"], [[(0, 1)]], chunk_tokens=8)
    assert chunked.requests == []


def test_no_texts_have_no_spans(client, server):
    assert client.embed_spans([], []).embeddings.shape == (0, 10)


def test_options_that_cannot_be_are_refused(client, chunked):
    with pytest.raises(TypeError, match="unexpected keyword argument 'truncate'"):
        client.embed_chunks(["1"], truncate="END")
    with pytest.raises(InvalidArgumentError, match="chunk_tokens must be at least 1"):
        client.embed_chunks(["1"], chunk_tokens=0)
    with pytest.raises(TypeError, match="put it into a list"):
        client.embed_chunks("1")
    assert chunked.requests == []


VECTOR = np.ones(WIDTH, "<f4").tobytes()
SPAN = np.array([0, 1, 3], "<i4").tobytes()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (answer([VECTOR], [SPAN], ("chunk_embeddings", "other")), "lacks the raw content of output chunk_spans"),
        (answer([VECTOR], [SPAN, SPAN]), "has the chunks of 1 texts, not of 2"),
        (answer([VECTOR] * 3, [SPAN] * 3), "has the chunks of 3 texts, not of 2"),
        (answer([VECTOR] * 2, [SPAN, SPAN[:8]]), "output chunk_spans"),
        (answer([VECTOR] * 2, [SPAN, b""]), "output chunk_spans"),
        (answer([VECTOR] * 2, [SPAN, SPAN * 2]), "output chunk_embeddings"),
        (answer([VECTOR, VECTOR[:-4]], [SPAN] * 2), "output chunk_embeddings"),
        (answer([VECTOR[:-1]] * 2, [SPAN] * 2), "output chunk_embeddings"),
        (answer([b""] * 2, [SPAN] * 2), "output chunk_embeddings"),
    ],
)
def test_an_answer_that_does_not_fit_is_refused(client, server, wrong, message):
    server.infer = lambda _request, _context: wrong
    with pytest.raises(ServerError, match=message):
        client.embed_chunks(["1", "2"])


def test_a_truncated_tensor_is_refused(client, server):
    cut = answer([VECTOR], [SPAN])
    cut.raw_output_contents[0] = cut.raw_output_contents[0][:-1]
    server.infer = lambda _request, _context: cut
    with pytest.raises(ServerError, match="ends within an element"):
        client.embed_chunks(["1"])


def test_the_width_may_not_change_during_a_call(client, server):
    widths = iter((WIDTH, WIDTH + 1))
    server.infer = lambda _request, _context: answer([np.ones(next(widths), "<f4").tobytes()], [SPAN])
    with pytest.raises(ServerError, match="number of dimensions changed"):
        client.embed_chunks(["1", "2"], batch_size=1)
