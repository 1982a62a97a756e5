"""Token ids of another tokenizer are refused, with the client's setting in the error."""

import json

import grpc
import pytest
from tests.fakes.triton import texts
from tests.unit.manager.router.apis.http.conftest import BERT, FakeDispatcher, running, server_view, tokenizer_answer
from tritonclient.grpc import service_pb2

from tritonembed_manager.router.interfaces import DispatchError

CL100K = [15339, 1917]
"""`hello world` in the ids of OpenAI's tokenizer; both lie within BERT's vocabulary."""
WITHOUT = ([7], [64])
"""A tokenizer without special tokens, whose model has an id for the empty text."""


async def ask(serving, ids):
    answer = await serving.post("/v1/embeddings", data=json.dumps({"input": ids}))
    return answer.status, answer.body.get("error")


@pytest.mark.parametrize("ids", [CL100K, [CL100K], [[101, 7, 102], [101, 7]], [[101]], [[7, 102]], [[102, 101]]])
async def test_ids_without_the_special_tokens_are_refused(serving, dispatcher, ids):
    status, error = await ask(serving, ids)
    assert (status, error["param"], error["type"]) == (400, "input", "invalid_request_error")
    assert "check_embedding_ctx_length=False" in error["message"]
    assert "\n" not in error["message"]
    assert f"element {1 if len(ids) == 2 and ids is not CL100K else 0} " in error["message"]
    assert not dispatcher.requests
    assert dispatcher.refusals == [grpc.StatusCode.INVALID_ARGUMENT]


@pytest.mark.parametrize(
    ("tokenizer", "good", "bad"),
    [
        (BERT, [101, 102], [101, 1037]),
        (([151643], [64, 151643]), [1, 2, 151643], [151643, 1]),
        (([1], [1, 64]), [1, 2], [2, 1]),
        (([0, 5, 2, 3], [0, 5, 64, 2, 3]), [0, 5, 9, 2, 3], [0, 5, 2]),
    ],
)
async def test_the_servers_tokenizer_says_which_they_are(serving, dispatcher, tokenizer, good, bad):
    dispatcher.answers["ModelInfer"] = tokenizer_answer(*tokenizer)
    assert (await ask(serving, good))[0] == 200
    assert (await ask(serving, bad))[0] == 400
    [(method, request, server)] = dispatcher.calls
    asked = service_pb2.ModelInferRequest.FromString(request)
    assert (method, server, asked.model_name, texts(asked)) == ("ModelInfer", None, "tokenizer", [b"", b"a"])
    assert asked.parameters["prompt"].WhichOneof("parameter_choice") == "string_param"


@pytest.mark.parametrize(
    "answer",
    [
        tokenizer_answer(*WITHOUT),
        DispatchError(grpc.StatusCode.INVALID_ARGUMENT, "text: sentence 0 has no tokens"),
        DispatchError(grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'tokenizer' is not found"),
    ],
)
async def test_without_special_tokens_only_text_is_accepted(serving, dispatcher, answer):
    dispatcher.answers["ModelInfer"] = answer
    status, error = await ask(serving, CL100K)
    assert status == 400
    assert "--accept-token-ids" in error["message"]
    assert "check_embedding_ctx_length=False" in error["message"]
    assert (await ask(serving, "text"))[0] == 200


async def test_an_option_accepts_all_ids():
    dispatcher = FakeDispatcher()
    dispatcher.answers.clear()
    async with running(dispatcher, accept_token_ids=True) as serving:
        assert (await ask(serving, CL100K))[0] == 200
    assert [request.model_name for request in dispatcher.requests] == ["embedder"]


async def test_other_servers_are_asked_again(serving, dispatcher):
    assert (await ask(serving, [101, 102]))[0] == 200
    dispatcher.views = [server_view("c", space="another")]
    dispatcher.answers["ModelInfer"] = tokenizer_answer([1], [1, 64])
    assert (await ask(serving, [101, 102]))[0] == 400
    assert (await ask(serving, [1, 102]))[0] == 200
    assert len(dispatcher.calls) == 2


async def test_a_failure_to_ask_is_no_answer(serving, dispatcher):
    dispatcher.answers["ModelInfer"] = DispatchError(grpc.StatusCode.UNAVAILABLE, "no server is ready")
    assert (await ask(serving, [101, 102]))[0] == 503
    dispatcher.answers["ModelInfer"] = tokenizer_answer([1])
    assert (await ask(serving, [101, 102]))[0] == 500
    dispatcher.answers["ModelInfer"] = tokenizer_answer(*BERT)
    assert (await ask(serving, [101, 102]))[0] == 200


async def test_texts_need_no_tokenizer(serving, dispatcher):
    dispatcher.answers.clear()
    assert (await ask(serving, ["a text", ""]))[0] == 200
    assert not dispatcher.calls
