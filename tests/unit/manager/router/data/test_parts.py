"""Parts of a large request, and the answer joined from theirs."""

from itertools import pairwise

import numpy as np
import pytest
from tests.fakes.triton import infer_request, infer_response, texts, vector
from tritonclient.grpc import service_pb2

from tritonembed_manager.router.data.envelope import read_envelope
from tritonembed_manager.router.data.parts import join, rows_of
from tritonembed_manager.router.data.request import BrokenAnswer
from tritonembed_manager.router.data.window import MOST_PER_ROW
from tritonembed_protocol.framing import frame, unframe
from tritonembed_protocol.served import ServedModel

SENTENCES = [b"sentence %d" % number * (1 + number % 7) for number in range(100)]
PARAMETERS = {"truncate": "END", "normalize": False, "dimensions": 4, "priority": 1, "timeout": 5_000_000}
PARAMETERS |= {"outputs": "dense,sparse", "top_k": 3, "return_tokens": True}


def parts_of(request, most):
    rows = rows_of(request.SerializeToString())
    parts = []
    while rows.left:
        message, count, size, _ = rows.take(most)
        assert size <= most or count == 1
        assert read_envelope(message).rows == count
        parts.append((service_pb2.ModelInferRequest.FromString(message), count))
    return parts


@pytest.mark.parametrize("most", [1, 40, 100, 1000, 1 << 20])
def test_parts_have_all_rows_in_order_and_all_else_of_the_request(most):
    request = infer_request(*SENTENCES, **PARAMETERS)
    request.id, request.model_version = "mine", "1"
    for name in ("embedding", "sparse", "multi_vector"):
        request.outputs.add(name=name)
    parts = parts_of(request, most)
    assert [text for part, _ in parts for text in texts(part)] == SENTENCES
    for part, count in parts:
        assert list(part.inputs[0].shape) == [count, 1]
        part.inputs[0].shape[0] = len(SENTENCES)
        part.raw_input_contents[:] = request.raw_input_contents
        assert part == request


def test_what_no_model_reads_of_a_row_is_no_work_of_its_part():
    rows = rows_of(infer_request(b"a", b"b" * (MOST_PER_ROW + 500), b"c").SerializeToString())
    assert [rows.take(1)[1:] for _ in range(3)] == [(1, 5, 0), (1, 4 + MOST_PER_ROW + 500, 500), (1, 5, 0)]


def answer(sentences, **more):
    response = infer_response([vector(text) for text in sentences], [len(text) for text in sentences])
    response.id, response.model_version = "mine", "7"
    response.parameters["triton_final_response"].bool_param = True
    for name, value in more.items():
        setattr(response, name, value)
    return response.SerializeToString()


@pytest.mark.parametrize("counts", [(100,), (1, 99), (33, 33, 34), (1,) * 100])
def test_a_joined_answer_is_the_whole_answer_byte_for_byte(counts):
    ends = [sum(counts[:number]) for number in range(len(counts) + 1)]
    answers = [answer(SENTENCES[begin:end]) for begin, end in pairwise(ends)]
    assert join(answers, counts) == answer(SENTENCES)


def test_answers_that_do_not_fit_together_are_refused():
    other = service_pb2.ModelInferResponse.FromString(answer(SENTENCES[:1]))
    del other.outputs[1:], other.raw_output_contents[1:]
    for answers in ([answer(SENTENCES[:1]), other.SerializeToString()], [other.SerializeToString(), b"", b""]):
        with pytest.raises(BrokenAnswer):
            join(answers, [1] * len(answers))


def test_servers_may_order_their_outputs_differently():
    other = service_pb2.ModelInferResponse.FromString(answer(SENTENCES[50:]))
    first, second = other.outputs[0], other.outputs[1]
    other.outputs.MergeFrom([second, first])
    del other.outputs[:2]
    other.raw_output_contents[:] = list(other.raw_output_contents)[::-1]
    assert join([answer(SENTENCES[:50]), other.SerializeToString()], [50, 50]) == answer(SENTENCES)


def as_ids(request):
    request.model_name, request.inputs[0].name = "embedder", "token_ids"
    request.outputs.add(name="embedding")


def test_token_ids_are_split_too():
    request = infer_request(*SENTENCES)
    as_ids(request)
    assert len(parts_of(request, 100)) > 10


WHOLE = {
    "spans": lambda request: request.parameters["spans"].MergeFrom(service_pb2.InferParameter(string_param="[]")),
    "chunks": lambda request: setattr(request, "model_name", "embedding_chunks"),
    "another model": lambda request: setattr(request, "model_name", "mine"),
    "another output": lambda request: request.outputs.add(name="chunk_spans"),
    "an output twice": lambda request: [request.outputs.add(name="embedding") for _ in range(2)],
    "an output with a parameter": lambda request: (
        request.outputs.add(name="embedding")
        .parameters["binary_data"]
        .MergeFrom(service_pb2.InferParameter(bool_param=True))
    ),
    "an unknown parameter": lambda request: request.parameters["sequence_id"].MergeFrom(
        service_pb2.InferParameter(int64_param=1)
    ),
    "another input": lambda request: setattr(request.inputs[0], "name", "token_ids"),
    "another shape": lambda request: request.inputs[0].shape.append(1),
    "an input with a parameter": lambda request: (
        request.inputs[0].parameters["x"].MergeFrom(service_pb2.InferParameter(bool_param=True))
    ),
    "all outputs of embedder": lambda request: (as_ids(request), request.outputs.pop()),
}


@pytest.mark.parametrize("change", WHOLE.values(), ids=WHOLE)
def test_these_requests_go_whole(change):
    request = infer_request(*SENTENCES)
    assert rows_of(request.SerializeToString()) is not None
    change(request)
    assert rows_of(request.SerializeToString()) is None


@pytest.mark.parametrize("count", [1, 1025])
def test_one_row_and_more_rows_than_a_server_takes_go_whole(count):
    assert rows_of(infer_request(*[b"a"] * count).SerializeToString()) is None


def test_requests_for_another_model_are_split_by_its_own_names():
    request = infer_request(*SENTENCES)
    request.model_name = "bge"
    assert rows_of(request.SerializeToString(), ServedModel("bge")) is not None
    assert rows_of(request.SerializeToString()) is None
    as_ids(request)
    request.model_name = "bge_embedder"
    assert rows_of(request.SerializeToString(), ServedModel("bge")) is not None


SCORES = ServedModel("rerank", "score")
QUERIES = [b"query %d" % (number % 3) * (1 + number % 5) for number in range(100)]


def pairs(queries=QUERIES, sentences=SENTENCES, model="rerank"):
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, rows in (("query", queries), ("text", sentences)):
        request.inputs.add(name=name, datatype="BYTES", shape=[len(rows), 1])
        request.raw_input_contents.append(frame(rows))
    for name in ("score", "num_tokens"):
        request.outputs.add(name=name)
    request.parameters["activation"].string_param = "none"
    return request


@pytest.mark.parametrize("most", [1, 100, 1000, 1 << 20])
def test_pairs_stay_together(most):
    rows = rows_of(pairs().SerializeToString(), SCORES)
    found = {"query": [], "text": []}
    while rows.left:
        message, count, size, _ = rows.take(most)
        assert size <= most or count == 1
        assert read_envelope(message).rows == count
        part = service_pb2.ModelInferRequest.FromString(message)
        assert part.parameters["activation"].string_param == "none"
        for tensor, content in zip(part.inputs, part.raw_input_contents, strict=True):
            assert list(tensor.shape) == [count, 1]
            found[tensor.name] += unframe(content)
    assert found == {"query": QUERIES, "text": SENTENCES}


def test_texts_without_their_queries_go_whole():
    request = pairs()
    del request.inputs[0], request.raw_input_contents[0]
    assert rows_of(request.SerializeToString(), SCORES) is None
    request.model_name = "classify"
    assert rows_of(request.SerializeToString(), SCORES) is not None
    assert rows_of(pairs(QUERIES[:50]).SerializeToString(), SCORES) is None
    assert rows_of(pairs().SerializeToString()) is None


def test_scores_are_joined():
    def scored(values):
        response = service_pb2.ModelInferResponse(model_name="rerank")
        response.outputs.add(name="score", datatype="FP32", shape=[len(values), 2])
        response.raw_output_contents.append(np.array(values, "<f4").tobytes())
        return response.SerializeToString()

    values = [[1, 2], [3, 4], [5, 6]]
    assert join([scored(values[:1]), scored(values[1:])], [1, 2]) == scored(values)
