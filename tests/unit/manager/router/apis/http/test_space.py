"""The header x-embedding-space of answers, and requests that ask for a space."""

import json
from types import SimpleNamespace

import grpc
import pytest
from tests.fakes.triton import infer_response, texts, vector

from tritonembed_manager.router.apis.http.vector_requests import MAX_INPUTS
from tritonembed_manager.router.data.spaces import parameter
from tritonembed_manager.router.interfaces import DispatchError

HEADER = "x-embedding-space"
TEXT = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": ["a"]}]}


def answering(*spaces):
    """Answers name these spaces in turn."""
    left = list(spaces)

    def answer(request):
        found = texts(request)
        encoded = infer_response([vector(text) for text in found], [1] * len(found)).SerializeToString()
        labelled = encoded + parameter(left.pop(0))
        return SimpleNamespace(SerializeToString=lambda: labelled)

    return answer


async def test_openai_answers_have_the_header(serving, dispatcher):
    dispatcher.answer = answering("aa-float32")
    answer = await serving.post("/v1/embeddings", json={"input": "a"})
    assert (answer.status, answer.headers[HEADER]) == (200, "aa-float32")


async def test_a_streamed_answer_of_two_precisions_names_both(serving, dispatcher):
    dispatcher.answer = answering(*["aa-float32", "aa-16bit"] * 2)
    answer = await serving.post("/v1/embeddings", json={"input": ["a"] * 4096, "encoding_format": "base64"})
    assert len(dispatcher.requests) == 4 <= MAX_INPUTS
    assert answer.headers[HEADER] == "aa-16bit, aa-float32"


async def test_kserve_answers_have_the_header_and_the_parameter(serving, dispatcher):
    dispatcher.answer = answering("aa-float32")
    answer = await serving.post(
        "/v2/models/embedding/infer",
        json={**TEXT, "outputs": [{"name": "embedding", "parameters": {"binary_data": True}}]},
    )
    assert answer.headers[HEADER] == "aa-float32"
    head = json.loads(answer.raw[: int(answer.headers["Inference-Header-Content-Length"])])
    assert head["parameters"] == {"embedding_space": "aa-float32"}


async def test_without_a_space_there_is_no_header(serving):
    assert HEADER not in (await serving.post("/v1/embeddings", json={"input": "a"})).headers


async def test_a_space_is_asked_for_in_the_body_or_in_a_header(serving, dispatcher):
    await serving.post("/v1/embeddings", json={"input": "a", "embedding_space": "aa-float32"})
    assert dispatcher.requests[-1].parameters["embedding_space"].string_param == "aa-float32"
    await serving.post("/v1/embeddings", json={"input": "a"}, headers={HEADER: "aa-float32"})
    assert dispatcher.metadata[-1][HEADER] == "aa-float32"


@pytest.mark.parametrize("wrong", [7, ["aa"], True])
async def test_a_space_that_is_no_string_is_refused(serving, wrong):
    answer = await serving.post("/v1/embeddings", json={"input": "a", "embedding_space": wrong})
    assert (answer.status, answer.body["error"]["param"]) == (400, "embedding_space")


async def test_the_refusal_of_another_space_names_the_field(serving, dispatcher):
    dispatcher.failure = DispatchError(grpc.StatusCode.INVALID_ARGUMENT, "embedding_space: the vectors here are other")
    answer = await serving.post("/v1/embeddings", json={"input": "a", "embedding_space": "bb-float32"})
    assert (answer.status, answer.body["error"]["param"]) == (400, "embedding_space")
