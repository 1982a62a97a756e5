"""The client's scores: what it asks for, what it makes of answers, and what it refuses."""

import asyncio
import json

import numpy as np
import pytest
from tests.unit.client.fake_server import elements, parameters
from tritonclient.grpc import service_pb2
from tritonclient.utils import deserialize_bytes_tensor

from tritonembed import (
    AsyncEmbeddingClient,
    EmbeddingClient,
    InvalidArgumentError,
    ModelNotFoundError,
    ServerError,
)
from tritonembed.cli.app import run


def answer_of(scores, tokens):
    response = service_pb2.ModelInferResponse(model_name="rerank", model_version="1")
    table = np.array(scores, "<f4")
    response.outputs.add(name="score", datatype="FP32", shape=table.shape)
    response.outputs.add(name="num_tokens", datatype="INT32", shape=(len(tokens), 1))
    response.raw_output_contents.append(table.tobytes())
    response.raw_output_contents.append(np.array(tokens, "<i4").tobytes())
    return response


def inputs_of(request):
    """The tensors of a request by name."""
    return {
        tensor.name: [bytes(one) for one in deserialize_bytes_tensor(content)]
        for tensor, content in zip(request.inputs, request.raw_input_contents, strict=True)
    }


def by_number(request, _context=None):
    """Scores the text "7" with 7."""
    texts = inputs_of(request)["text"]
    return answer_of([[float(text)] for text in texts], [len(text) for text in texts])


def test_texts_are_ranked_over_several_requests(server, client):
    server.infer = by_number
    ranking = client.rerank("the query", ["3", "9", "1", "9", "5"], batch_size=2)
    assert ranking.indices.tolist() == [1, 3, 4, 0, 2]
    assert ranking.scores.tolist() == [9, 9, 5, 3, 1]
    assert next(iter(ranking)) == (1, 9.0)
    assert len(ranking) == 5
    assert ranking.num_tokens == 5
    assert len(server.requests) == 3
    assert {request.model_name for request in server.requests} == {"rerank"}
    sent = [inputs_of(request) for request in server.requests]
    assert sorted(len(one["query"]) for one in sent) == [1, 2, 2]
    assert {query for one in sent for query in one["query"]} == {b"the query"}
    assert sorted(text for one in sent for text in one["text"]) == [b"1", b"3", b"5", b"9", b"9"]


def test_top_n_keeps_the_best(server, client):
    server.infer = by_number
    assert client.rerank("q", ["3", "9", "1"], top_n=2).indices.tolist() == [1, 0]
    assert client.rerank("q", ["3", "9", "1"], top_n=9).indices.tolist() == [1, 0, 2]
    with pytest.raises(InvalidArgumentError, match=r"^top_n must be at least 1$"):
        client.rerank("q", ["3"], top_n=0)


def test_options_are_parameters(server, client):
    server.infer = by_number
    client.score(
        "q", ["1"], truncate="NONE", activation="none", instruction="x", priority="interactive", embedding_space="a-b"
    )
    asked = {name: value for name, value in parameters(server.requests[0]).items() if name != "timeout"}
    assert asked == {
        "truncate": "NONE",
        "activation": "none",
        "instruction": "x",
        "priority": 1,
        "embedding_space": "a-b",
    }


def test_scores_have_the_labels_of_the_model(server, client):
    server.infer = lambda request, _context: answer_of([[0.1, 0.7, 0.2]] * 2, [3, 4])
    server.labels = ["no", "yes", "maybe"]
    result = client.classify(["a", "b"])
    assert result.labels == ("no", "yes", "maybe")
    assert result.scores.shape == (2, 3)
    assert result.num_tokens.tolist() == [3, 4]
    assert server.requests[0].model_name == "classify"
    assert [tensor.name for tensor in server.requests[0].inputs] == ["text"]
    with pytest.raises(InvalidArgumentError, match="3 labels: use score"):
        client.rerank("q", ["a", "b"])


def test_labels_that_no_server_tells_are_numbered(server, client):
    server.infer = lambda request, _context: answer_of([[0.1, 0.9]], [3])
    assert client.score("q", ["a"]).labels == ("LABEL_0", "LABEL_1")


def test_no_texts_give_no_scores(server, client):
    server.labels = ["a", "b"]
    assert client.score("q", []).scores.shape == (0, 2)
    assert server.requests == []


@pytest.mark.parametrize(
    ("scores", "tokens", "message"),
    [
        ([[1.0]], [1, 2], "output num_tokens: 8 bytes"),
        ([[1.0, 2.0, 3.0]], [1, 2], "output score: 12 bytes are not FP32 scores of 2 texts"),
        ([[float("nan")], [1.0]], [1, 2], "output score: a score is not finite"),
    ],
)
def test_an_answer_that_does_not_fit_is_an_error(server, client, scores, tokens, message):
    count = 1 if len(scores[0]) == 1 and len(scores) == 1 else 2
    server.infer = lambda request, _context: answer_of(scores, tokens)
    with pytest.raises(ServerError, match=message):
        client.score("q", ["1"] * count)


def test_what_can_not_be_sent_is_refused_at_once(server, client):
    with pytest.raises(InvalidArgumentError, match=r"^query is empty$"):
        client.rerank("", ["a"])
    with pytest.raises(TypeError, match="query is int, not str"):
        client.rerank(3, ["a"])
    with pytest.raises(TypeError, match="single text"):
        client.rerank("q", "a")
    with pytest.raises(TypeError, match="unexpected keyword argument 'dimensions'"):
        client.score("q", ["a"], dimensions=3)
    assert server.requests == []


def test_a_server_that_only_scores_is_ready(server, client):
    def infer(request, context):
        if request.model_name != "rerank":
            import grpc

            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.model_name}' is not found")
        return answer_of([[0.5]], [2])

    server.infer = infer
    server.models = ["rerank", "scorer"]
    assert client.is_ready()
    assert [model.name for model in client.info().models] == ["rerank", "scorer"]
    with pytest.raises(ModelNotFoundError):
        client.embed(["a"])


def test_another_model_has_its_name_in_every_call(server):
    server.infer = by_number
    with EmbeddingClient(server.target, score_model="mine") as client:
        client.score("q", ["1"])
        client.classify(["1"])
    assert [request.model_name for request in server.requests] == ["mine", "mine_classify"]


def test_the_asyncio_client_ranks_too(server):
    server.infer = by_number

    async def ranked():
        async with AsyncEmbeddingClient(server.target) as client:
            return (await client.rerank("q", ["3", "9"])).indices.tolist()

    assert asyncio.run(ranked()) == [1, 0]


def command(server, *arguments):
    with pytest.raises(SystemExit) as ended:
        run([*arguments, "--server", server.target])
    return ended.value.code


def test_the_command_shows_the_best_first(server, capsys):
    server.infer = by_number
    assert command(server, "rerank", "the query", "3", "9", "1", "--top-n", "2") == 0
    assert capsys.readouterr().out == "    9.0000  9\n    3.0000  3\n"
    assert command(server, "rerank", "the query", "3", "9", "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [{"index": 1, "score": 9.0, "text": "9"}, {"index": 0, "score": 3.0, "text": "3"}]


def test_the_command_shows_labels(server, capsys):
    server.infer = lambda request, _context: answer_of([[0.25, 0.75]] * len(elements(request)), [3])
    server.labels = ["bad", "good"]
    assert command(server, "classify", "a text") == 0
    assert capsys.readouterr().out == "good 0.7500, bad 0.2500  a text\n"


def test_the_command_refuses_an_empty_query_in_one_line(server, capsys):
    assert command(server, "rerank", "", "a") == 1
    assert capsys.readouterr().err == "tritonembed: InvalidArgumentError: query is empty\n"
