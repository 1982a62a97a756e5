"""Cohere's, text-embeddings-inference's and vLLM's routes for scores, by hand."""

import json
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from tests.unit.manager.router.apis.http.conftest import MODEL, running
from tritonclient.grpc import service_pb2
from tritonclient.utils import deserialize_bytes_tensor

from tritonembed_manager.router.data import spaces
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.interfaces import DispatchError
from tritonembed_protocol.framing import frame
from tritonembed_protocol.served import FIRST_OF_TASK, ServedModel
from tritonembed_protocol.space import HEADER

NAMES = ServedNames((MODEL,), served=FIRST_OF_TASK["score"])
DOCUMENTS = ["3", "9", "1", "5"]


def inputs_of(request):
    return {
        tensor.name: [bytes(one).decode() for one in deserialize_bytes_tensor(content)]
        for tensor, content in zip(request.inputs, request.raw_input_contents, strict=True)
    }


def scored(table, tokens):
    answer = service_pb2.ModelInferResponse(model_name="rerank", model_version="1")
    table = np.array(table, "<f4")
    answer.outputs.add(name="score", datatype="FP32", shape=table.shape)
    answer.outputs.add(name="num_tokens", datatype="INT32", shape=(len(table), 1))
    answer.raw_output_contents.extend([table.tobytes(), np.array(tokens, "<i4").tobytes()])
    return answer


def by_number(request):
    """The score of the text "7" is 7."""
    found = inputs_of(request)["text"]
    return scored([[float(text)] for text in found], [2] * len(found))


@pytest.fixture
async def serving(dispatcher):
    async with running(dispatcher, names=NAMES) as found:
        yield found


@pytest.fixture
def ranker(dispatcher):
    dispatcher.answer = by_number
    config = service_pb2.ModelConfigResponse()
    config.config.parameters["labels"].string_value = json.dumps(["relevant"])
    dispatcher.answers["ModelConfig"] = config
    return dispatcher


async def ask(serving, path, **body):
    return await serving.post(path, data=json.dumps(body))


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
async def test_documents_are_ranked_as_coheres(serving, ranker, path):
    answer = await ask(serving, path, model=MODEL, query="the query", documents=DOCUMENTS, top_n=2)
    assert answer.status == 200
    assert answer.body["results"] == [{"index": 1, "relevance_score": 9.0}, {"index": 3, "relevance_score": 5.0}]
    assert (answer.body["model"], answer.body["usage"]["total_tokens"]) == (MODEL, 8)
    assert answer.body["meta"]["billed_units"]["search_units"] == 1
    [request] = ranker.requests
    assert request.model_name == "rerank"
    assert inputs_of(request) == {"query": ["the query"] * 4, "text": DOCUMENTS}


async def test_documents_come_back_if_asked_for(serving, ranker):
    documents = [{"text": "3"}, "ü9"]
    ranker.answer = lambda request: scored([[1.0], [2.0]], [1, 1])
    answer = await ask(serving, "/v1/rerank", query="q", documents=documents, return_documents=True)
    assert [one["document"] for one in answer.body["results"]] == [{"text": "ü9"}, {"text": "3"}]


async def test_tokens_per_document_are_a_parameter(serving, ranker):
    await ask(serving, "/v2/rerank", query="q", documents=DOCUMENTS, max_tokens_per_doc=7)
    assert ranker.requests[0].parameters["max_text_tokens"].int64_param == 7


async def test_many_documents_are_ranked_over_several_requests(serving, ranker):
    documents = [str(number) for number in np.random.default_rng(0).permutation(2500)]
    answer = await ask(serving, "/v1/rerank", query="q", documents=documents)
    assert [int(documents[one["index"]]) for one in answer.body["results"]] == list(range(2499, -1, -1))
    assert sorted(request.inputs[0].shape[0] for request in ranker.requests) == [452, 1024, 1024]


async def test_teis_rerank_gives_a_list(serving, ranker):
    answer = await ask(serving, "/rerank", query="q", texts=DOCUMENTS, raw_scores=True, return_text=True)
    assert answer.body[0] == {"index": 1, "score": 9.0, "text": "9"}
    assert [one["index"] for one in answer.body] == [1, 3, 0, 2]
    assert ranker.requests[0].parameters["activation"].string_param == "none"
    # litellm's.
    answer = await ask(serving, "/rerank", query="q", texts=DOCUMENTS, top_n=2)
    assert answer.body == [{"index": 1, "score": 9.0}, {"index": 3, "score": 5.0}]


async def test_documents_at_teis_route_are_ranked_as_coheres(serving, ranker):
    answer = await ask(serving, "/rerank", query="q", documents=DOCUMENTS, top_n=1)
    assert answer.body["results"] == [{"index": 1, "relevance_score": 9.0}]


async def test_teis_predict_gives_labels(serving, ranker):
    ranker.answers["ModelConfig"].config.parameters["labels"].string_value = '["bad", "good"]'
    ranker.answer = lambda request: scored(
        [[0.25, 0.75]] * request.inputs[0].shape[0], [1] * request.inputs[0].shape[0]
    )
    labels = [{"score": 0.75, "label": "good"}, {"score": 0.25, "label": "bad"}]
    assert (await ask(serving, "/predict", inputs="a text")).body == labels
    assert (await ask(serving, "/predict", inputs=[["a"], ["b"]])).body == [labels, labels]
    assert (await ask(serving, "/predict", inputs=["a", "b"])).body == labels
    assert [request.model_name for request in ranker.requests] == ["classify", "classify", "rerank"]
    assert inputs_of(ranker.requests[2]) == {"query": ["a"], "text": ["b"]}


async def test_vllms_score_keeps_the_order(serving, ranker):
    answer = await ask(serving, "/score", text_1="q", text_2=DOCUMENTS)
    assert [one["score"] for one in answer.body["data"]] == [3, 9, 1, 5]
    assert answer.body["usage"]["prompt_tokens"] == 8
    await ask(serving, "/v1/score", text_1=["a", "b"], text_2=["1", "2"], use_activation=False)
    assert inputs_of(ranker.requests[1]) == {"query": ["a", "b"], "text": ["1", "2"]}
    assert ranker.requests[1].parameters["activation"].string_param == "none"


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1/rerank", {"query": "", "documents": ["a"]}, "query must be a string, and not empty"),
        ("/v1/rerank", {"query": "q", "documents": []}, "documents must be a list, and not empty"),
        ("/v1/rerank", {"query": "q", "documents": [3]}, "documents must be strings"),
        ("/v2/rerank", {"query": "q", "documents": ["a"], "top_n": 0}, "top_n must be a whole number of at least 1"),
        ("/v2/rerank", {"query": "q", "documents": ["a"], "texts": []}, "texts: there is no such field"),
        ("/v1/rerank", {"query": "q", "documents": ["a"], "model": "other"}, "model: this server has no such model"),
        ("/v1/rerank", {"query": "q", "documents": ["a"], "rank_fields": ["x"]}, "rank_fields: documents are read"),
    ],
)
async def test_coheres_bad_input_is_one_line(serving, ranker, path, body, message):
    answer = await ask(serving, path, **body)
    assert answer.status in (400, 404)
    assert answer.body["message"].startswith(message)
    assert ranker.requests == []


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/rerank", {"query": "q", "texts": "a"}, "texts must be a list, and not empty"),
        ("/rerank", {"query": "q", "texts": ["a"], "top_n": 0}, "top_n must"),
        ("/rerank", {"texts": ["a"]}, "query must be a string, and not empty"),
        ("/rerank", {"query": "q", "texts": ["a"], "truncation_direction": "up"}, "truncation_direction must be"),
        ("/predict", {"inputs": [["a", "b", "c"]]}, "inputs must be a text, a pair of texts"),
        ("/predict", {"inputs": [["a"], ["b", "c"]]}, "inputs: pairs and texts alone must be in different requests"),
        ("/predict", {"inputs": 3}, "inputs must be strings"),
    ],
)
async def test_teis_bad_input_is_one_line(serving, ranker, path, body, message):
    answer = await ask(serving, path, **body)
    assert answer.status == 422
    assert answer.body["error"].startswith(message)
    assert answer.body["error_type"] == "Validation"


async def test_vllms_sides_must_fit(serving, ranker):
    answer = await ask(serving, "/score", text_1=["a", "b"], text_2=["1", "2", "3"])
    assert answer.status == 400
    assert answer.body["error"]["message"] == "text_1 has 2 texts, but text_2 has 3"


async def test_a_refusal_of_the_servers_has_the_form_of_the_api(serving, ranker):
    ranker.failure = DispatchError(grpc.StatusCode.INVALID_ARGUMENT, "query: sentence 0 leaves no room for a text")
    answer = await ask(serving, "/v1/rerank", query="q", documents=["a"])
    assert (answer.status, answer.body) == (400, {"message": "query: sentence 0 leaves no room for a text"})
    answer = await ask(serving, "/rerank", query="q", texts=["a"])
    assert answer.status == 422


async def test_several_labels_can_not_be_ranked(serving, ranker):
    ranker.answer = lambda request: scored([[0.2, 0.8]], [1])
    answer = await ask(serving, "/v1/rerank", query="q", documents=["a"])
    assert (answer.status, answer.body["message"]) == (400, "model: it has 2 labels; /predict gives all of them")


async def test_an_embedding_model_says_what_it_does(dispatcher):
    names = ServedNames((MODEL,), more=(ServedNames(("ranker",), served=ServedModel("ranker", "score")),))
    dispatcher.answer = by_number
    dispatcher.answers["ModelConfig"] = service_pb2.ModelConfigResponse()
    async with running(dispatcher, names=names) as serving:
        answer = await ask(serving, "/v1/rerank", query="q", documents=["a"], model=MODEL)
        assert answer.body["message"] == f"model: {MODEL} embeds texts; it does not score pairs"
        # Without a name, it is the first model that scores.
        answer = await ask(serving, "/v1/rerank", query="q", documents=["7"])
        assert answer.body["model"] == "ranker"
        assert dispatcher.requests[0].model_name == "ranker"


TOKEN_MODEL = ServedNames(("colbert",), more=(ServedNames(("ranker",), served=ServedModel("ranker", "score")),))


def vectors_of(text, kind):
    """A vector for each word, other ones for queries."""
    seed = [len(kind), *text.encode()]
    return np.random.default_rng(seed).standard_normal((len(text.split()), 4)).astype("<f4")


def by_tokens(request):
    texts = inputs_of(request)["text"]
    found = [vectors_of(text, request.parameters["input_type"].string_param) for text in texts]
    answer = service_pb2.ModelInferResponse(model_name="embedding", model_version="1")
    elements = [np.int32(len(rows)).tobytes() + rows.tobytes() for rows in found]
    answer.outputs.add(name="multi_vector", datatype="BYTES", shape=(len(texts), 1))
    answer.outputs.add(name="num_tokens", datatype="INT32", shape=(len(texts), 1))
    answer.raw_output_contents.extend([frame(elements), np.array([len(rows) for rows in found], "<i4").tobytes()])
    return answer


def late(query, text):
    """MaxSim, written out."""
    total = 0.0
    for own in vectors_of(query, "query"):
        total += max((float(own @ other) for other in vectors_of(text, "passage")), default=0.0)
    return total


@pytest.fixture
async def colbert(dispatcher):
    dispatcher.answer = by_tokens
    async with running(dispatcher, names=TOKEN_MODEL) as found:
        yield found


MANY = [f"word {number} and {number % 7}" for number in range(70)]


@pytest.mark.parametrize(
    ("queries", "texts"),
    [("a b", ["c d e", "", "f"]), (["a b", "c"], "d e"), (["a b", "c"], ["d", "e f"]), ("a", MANY), (MANY, MANY[::-1])],
)
async def test_vllms_score_of_a_model_with_token_vectors_is_maxsim(colbert, dispatcher, queries, texts):
    answer = await ask(colbert, "/score", model="colbert", text_1=queries, text_2=texts)
    assert answer.status == 200
    ours, theirs = ([side] if isinstance(side, str) else side for side in (queries, texts))
    count = max(len(ours), len(theirs))
    pairs = zip(ours * (count // len(ours)), theirs * (count // len(theirs)), strict=True)
    wanted = [late(*pair) for pair in pairs]
    assert [one["index"] for one in answer.body["data"]] == list(range(count))
    np.testing.assert_allclose([one["score"] for one in answer.body["data"]], wanted, atol=1e-5)
    words = sum(len(text.split()) for text in [*ours, *theirs])
    assert (answer.body["model"], answer.body["usage"]["total_tokens"]) == ("colbert", words)
    assert {request.parameters["outputs"].string_param for request in dispatcher.requests} == {"multi_vector"}


async def test_all_texts_of_a_call_are_of_the_space_of_its_queries(colbert, dispatcher):
    """As with two versions of a model: each answers in its own space, and is chosen at random unless one is named."""
    given = iter(["aa-float32", "bb-float32"] * 100)

    def answer(request):
        # Only requests that name no space get any version's. The dispatcher puts it behind the answer.
        space = spaces.parameter(dispatcher.metadata[-1].get(HEADER) or next(given))
        return SimpleNamespace(SerializeToString=lambda: by_tokens(request).SerializeToString() + space)

    dispatcher.answer = answer
    scores = await ask(colbert, "/score", model="colbert", text_1="a b", text_2=MANY * 4)
    assert (scores.status, scores.headers[HEADER]) == (200, "aa-float32")
    first, *later = [metadata.get(HEADER) for metadata in dispatcher.metadata]
    assert (first, set(later), len(later) > 2) == (None, {"aa-float32"}, True)
    asked = await colbert.post(
        "/score",
        data=json.dumps({"model": "colbert", "text_1": "a b", "text_2": MANY}),
        headers={HEADER: "cc-float32"},
    )
    assert asked.headers[HEADER] == "cc-float32"


async def test_late_interaction_chooses_among_models(colbert, dispatcher):
    found = await ask(colbert, "/score", text_1="a", text_2="b", late_interaction=True)
    assert found.body["data"][0]["score"] == pytest.approx(late("a", "b"), abs=1e-5)
    dispatcher.answer = lambda request: scored([[1.0]], [2])
    dispatcher.answers["ModelConfig"] = service_pb2.ModelConfigResponse()
    assert (await ask(colbert, "/score", text_1="a", text_2="b")).body["model"] == "ranker"
    for body, reason in (
        ({"model": "ranker", "late_interaction": True}, "model: ranker scores pairs itself, without late_interaction"),
        ({"model": "colbert", "late_interaction": False}, "model: colbert embeds texts; it does not score pairs"),
        ({"late_interaction": 1}, "late_interaction must be true or false"),
    ):
        refused = await ask(colbert, "/score", text_1="a", text_2="b", **body)
        assert (refused.status, refused.body["error"]["message"]) == (400, reason)


async def test_a_model_without_token_vectors_is_refused_in_a_line(colbert, dispatcher):
    error = DispatchError(grpc.StatusCode.INVALID_ARGUMENT, "outputs: the model gives dense, not multi_vector")
    dispatcher.failure = error
    answer = await ask(colbert, "/score", model="colbert", text_1="a", text_2="b")
    assert answer.status == 400
    wanted = "model: colbert gives no vectors of tokens; /score needs these, or a reranker"
    assert answer.body["error"]["message"] == wanted
