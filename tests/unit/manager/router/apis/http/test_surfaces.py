"""The same mistakes on the routes of every API: one clear line, in the API's own form and with its status."""

import json

import grpc
import numpy as np
import pytest
from tests.fakes.triton import infer_response, texts, vector
from tests.unit.manager.router.apis.http.conftest import running
from tests.unit.manager.router.apis.http.test_rerank import inputs_of, scored
from tritonclient.grpc import service_pb2

from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.data.models_dispatcher import NOT_IN_MEMORY
from tritonembed_manager.router.interfaces import DispatchError
from tritonembed_protocol.served import ServedModel

NAMES = ServedNames(("minilm",), more=(ServedNames(("ranker",), served=ServedModel("ranker", "score")),))
MANY = [f"text {number}" for number in range(1025)]
SOURCE = {"source_sentence": "a", "sentences": ["b"]}


def kserve(model, **inputs):
    tensors = [
        {"name": name, "datatype": "BYTES", "shape": [len(rows), 1], "data": rows} for name, rows in inputs.items()
    ]
    return f"/v2/models/{model}/infer", {"inputs": tensors, "parameters": {"as": "FP32"}}


def message(body):
    """The line of an error, of each API's form."""
    error = body.get("error", body)
    if isinstance(error, dict):
        assert set(error) in ({"message"}, {"message", "type", "param", "code"})
        return error["message"]
    assert set(body) in ({"error"}, {"error", "error_type"})
    return error


@pytest.fixture
async def both(dispatcher):
    """An embedding model and a reranker, whose scores are the texts' lengths."""
    dispatcher.answers["ModelConfig"] = service_pb2.ModelConfigResponse()

    def answer(request):
        if request.model_name.startswith("ranker"):
            lengths = [len(text) for text in inputs_of(request)["text"]]
            return scored([[length] for length in lengths], [1] * len(lengths))
        found = texts(request)
        return infer_response([vector(text) for text in found], [1] * len(found))

    dispatcher.answer = answer
    async with running(dispatcher, names=NAMES) as found:
        yield found


async def ask(both, path, body):
    return await both.post(path, data=json.dumps(body))


async def refused(both, dispatcher, path, body, status, reason):
    answer = await ask(both, path, body)
    assert (answer.status, message(answer.body)) == (status, reason)
    assert dispatcher.requests == []
    good = await ask(both, "/rerank", {"query": "q", "texts": ["a"]})
    assert good.body == [{"index": 0, "score": 1.0}]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/embeddings", {"model": "ranker", "input": "a"}, 400),
        ("/embeddings", {"model": "ranker", "input": ["a"]}, 400),
        ("/openai/deployments/ranker/embeddings", {"input": "a"}, 400),
        ("/v1/embed", {"model": "ranker", "texts": ["a"]}, 400),
        ("/v2/embed", {"model": "ranker", "input_type": "search_query", "texts": ["a"]}, 400),
        ("/embed", {"model": "ranker", "inputs": "a"}, 422),
        ("/", {"model": "ranker", "inputs": SOURCE}, 422),
        ("/models/ranker/embed", {"inputs": "a"}, 422),
        ("/models/ranker/embed_sparse", {"inputs": "a"}, 422),
        ("/models/ranker/embed_all", {"inputs": "a"}, 422),
        ("/models/ranker/similarity", {"inputs": SOURCE}, 422),
    ],
)
async def test_a_reranker_that_is_asked_to_embed(both, dispatcher, path, body, status):
    reason = "model: ranker scores pairs of a query and a text; it does not embed"
    await refused(both, dispatcher, path, body, status, reason)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/rerank", {"model": "minilm", "query": "q", "documents": ["a"]}, 400),
        ("/v2/rerank", {"model": "minilm", "query": "q", "documents": ["a"]}, 400),
        ("/rerank", {"model": "minilm", "query": "q", "texts": ["a"]}, 422),
        ("/models/minilm/rerank", {"query": "q", "texts": ["a"]}, 422),
        ("/models/minilm/predict", {"inputs": "a"}, 422),
        ("/score", {"model": "minilm", "text_1": "q", "text_2": "a", "late_interaction": False}, 400),
    ],
)
async def test_an_embedding_model_that_is_asked_to_score(both, dispatcher, path, body, status):
    await refused(both, dispatcher, path, body, status, "model: minilm embeds texts; it does not score pairs")


@pytest.mark.parametrize(
    ("path", "body", "status", "reason"),
    [
        ("/v1/rerank", {"query": "", "documents": ["a"]}, 400, "query must be a string, and not empty"),
        ("/v2/rerank", {"query": "", "documents": ["a"]}, 400, "query must be a string, and not empty"),
        ("/rerank", {"query": "", "texts": ["a"]}, 422, "query must be a string, and not empty"),
        ("/rerank", {"query": "", "documents": ["a"]}, 422, "query must be a string, and not empty"),
        ("/score", {"model": "ranker", "text_1": "", "text_2": "a"}, 400, "text_1: the query of pair 0 is empty"),
        ("/v1/score", {"text_1": ["a", ""], "text_2": "a"}, 400, "text_1: the query of pair 1 is empty"),
        ("/predict", {"inputs": ["", "a"]}, 422, "inputs: the query of pair 0 is empty"),
        ("/predict", {"inputs": [["a", "b"], ["", "a"]]}, 422, "inputs: the query of pair 1 is empty"),
    ],
)
async def test_a_query_of_zero_length(both, dispatcher, path, body, status, reason):
    await refused(both, dispatcher, path, body, status, reason)


@pytest.mark.parametrize("number", [0, -1, 1.5, True, "2"])
@pytest.mark.parametrize(
    ("path", "texts", "status"),
    [("/v1/rerank", "documents", 400), ("/v2/rerank", "documents", 400), ("/rerank", "texts", 422)],
)
async def test_a_top_n_that_is_no_number_above_0(both, dispatcher, path, texts, status, number):
    body = {"query": "q", texts: ["a", "b"], "top_n": number}
    await refused(both, dispatcher, path, body, status, "top_n must be a whole number of at least 1")


async def test_a_top_n_above_the_number_of_texts_gives_all(both):
    answer = await ask(both, "/v2/rerank", {"query": "q", "documents": ["a", "bb"], "top_n": 99})
    assert [one["index"] for one in answer.body["results"]] == [1, 0]


@pytest.mark.parametrize(
    ("path", "body", "count"),
    [
        ("/v1/embeddings", {"model": "minilm", "input": MANY}, lambda found: len(found["data"])),
        ("/v2/embed", {"input_type": "search_query", "texts": MANY}, lambda found: len(found["embeddings"]["float"])),
        ("/embed", {"inputs": MANY}, len),
        ("/v1/rerank", {"query": "q", "documents": MANY}, lambda found: len(found["results"])),
        ("/v2/rerank", {"query": "q", "documents": MANY}, lambda found: len(found["results"])),
        ("/rerank", {"query": "q", "texts": MANY}, len),
        ("/predict", {"inputs": [[text] for text in MANY]}, len),
        ("/score", {"text_1": "q", "text_2": MANY}, lambda found: len(found["data"])),
    ],
)
async def test_1025_texts_go_in_two_requests_where_no_tensor_is_asked_for(both, dispatcher, path, body, count):
    answer = await ask(both, path, body)
    assert (answer.status, count(answer.body)) == (200, 1025)
    assert len(dispatcher.requests) >= 2
    assert all(request.inputs[0].shape[0] <= 1024 for request in dispatcher.requests)


ROUTES = {
    "/v1/embeddings": {"model": "minilm", "input": "a"},
    "/v2/embed": {"input_type": "search_query", "texts": ["a"]},
    "/embed": {"inputs": "a"},
    "/embed_sparse": {"inputs": "a"},
    "/embed_all": {"inputs": "a"},
    "/similarity": {"inputs": SOURCE},
    "/v1/rerank": {"query": "q", "documents": ["a"]},
    "/v2/rerank": {"query": "q", "documents": ["a"]},
    "/rerank": {"query": "q", "texts": ["a"]},
    "/predict": {"inputs": "a"},
    "/score": {"model": "ranker", "text_1": "q", "text_2": "a"},
    **dict([kserve("minilm", text=["a"]), kserve("ranker", query=["q"], text=["a"])]),
}


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    ("code", "reason", "status"),
    [
        # Loading: the request waited until its deadline. Evicted, in a drain. Failed: its server broke. Busy.
        (grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed", 504),
        (grpc.StatusCode.UNAVAILABLE, NOT_IN_MEMORY, 503),
        (grpc.StatusCode.UNAVAILABLE, "no server is ready", 503),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "overloaded: the model has its maximum of requests", 429),
        (grpc.StatusCode.NOT_FOUND, "there is no such model", 404),
    ],
)
async def test_a_model_that_is_loaded_evicted_failed_or_busy(both, dispatcher, path, code, reason, status):
    dispatcher.failure = DispatchError(code, reason)
    answer = await ask(both, path, ROUTES[path])
    assert (answer.status, message(answer.body)) == (status, reason)
    dispatcher.failure = None
    good = await ask(both, "/embed", {"inputs": "a"})
    assert (np.array(good.body, "<f4") == [vector(b"a")]).all()


async def test_a_served_model_in_teis_field_is_that_model_and_another_name_has_no_effect(dispatcher):
    names = ServedNames(("minilm",), more=(ServedNames(("bge",), served=ServedModel("bge")),))
    async with running(dispatcher, names=names) as both:
        for body in ({"model": "bge"}, {"model": "sentence-transformers/other"}, {"model": None}, {}):
            assert (await ask(both, "/embed", {"inputs": "a", **body})).status == 200
        # The model of the path comes first.
        assert (await ask(both, "/models/minilm/embed", {"inputs": "a", "model": "bge"})).status == 200
    assert [request.model_name for request in dispatcher.requests] == ["bge", *["embedding"] * 4]


async def test_teis_embed_serves_the_first_model_that_embeds(dispatcher):
    names = ServedNames(
        ("ranker",), served=ServedModel("rerank", "score"), more=(ServedNames(("bge",), served=ServedModel("bge")),)
    )
    async with running(dispatcher, names=names) as both:
        assert (await ask(both, "/embed", {"inputs": "a"})).status == 200
    assert dispatcher.requests[0].model_name == "bge"
