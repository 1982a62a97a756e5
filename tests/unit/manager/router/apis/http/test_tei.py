"""The routes of text-embeddings-inference, with Hugging Face's own client and by hand."""

import asyncio
import json

import grpc
import numpy as np
import pytest
from huggingface_hub import InferenceClient
from tests.fakes.triton import DIMENSIONS, infer_response, texts, vector
from tests.unit.manager.router.apis.http.conftest import MODEL, server_view
from tritonclient.grpc import service_pb2

from tritonembed_manager.router.apis.http import vector_requests
from tritonembed_manager.router.interfaces import DispatchError
from tritonembed_protocol.framing import frame

LONG = "text: sentence 0 has 600 tokens, over the model's maximum of 512"


async def ask(serving, path="/embed", **body):
    return await serving.post(path, data=json.dumps(body))


def parameters(dispatcher):
    return {
        name: getattr(value, value.WhichOneof("parameter_choice"))
        for name, value in dispatcher.requests[-1].parameters.items()
    }


@pytest.mark.parametrize("path", ["/embed", "/embed/", "/"])
@pytest.mark.parametrize("inputs", ["one", ["one", "zwei Wörter", ""]])
async def test_the_answer_is_the_exact_vectors(serving, path, inputs):
    answer = await ask(serving, path, inputs=inputs)
    given = [inputs] if isinstance(inputs, str) else inputs
    assert answer.status == 200
    assert (np.array(answer.body, "<f4") == [vector(text.encode()) for text in given]).all()


async def test_many_texts_are_split_and_come_back_in_order(serving, dispatcher):
    given = [f"text {number}" for number in range(3500)]
    answer = await ask(serving, inputs=given)
    assert len(dispatcher.requests) == 4
    assert (np.array(answer.body, "<f4") == [vector(text.encode()) for text in given]).all()


async def test_similarities_are_cosines(serving, dispatcher):
    # Vectors that are not of length 1.
    dispatcher.answer = lambda request: infer_response(
        [3 * vector(text) for text in texts(request)], [1] * len(texts(request))
    )
    pair = {"source_sentence": "a", "sentences": ["b", "a", "c"]}
    expected = [float(vector(b"a") @ vector(other)) for other in (b"b", b"a", b"c")]
    for path in ("/similarity", "/"):
        answer = await ask(serving, path, inputs=pair, parameters={})
        assert answer.body == pytest.approx(expected, abs=1e-6)


async def test_hugging_faces_client_works_unchanged(serving):
    given = ["one", "another"]
    expected = np.stack([vector(text.encode()) for text in given])
    for url in (serving.base, f"{serving.base}/embed"):
        client = InferenceClient(url)
        found = await asyncio.to_thread(client.feature_extraction, given)
        assert (found == expected).all()
        one = await asyncio.to_thread(
            client.feature_extraction, "one", normalize=True, truncate=True, truncation_direction="left"
        )
        assert (one == expected[:1]).all()
    for url in (serving.base, f"{serving.base}/similarity"):
        found = await asyncio.to_thread(InferenceClient(url).sentence_similarity, "one", other_sentences=given)
        assert found == pytest.approx(expected @ expected[0], abs=1e-6)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({}, {"normalize": True}),
        ({"normalize": False, "dimensions": 4}, {"normalize": False, "dimensions": 4}),
        ({"truncate": True}, {"normalize": True, "truncate": "END"}),
        ({"truncate": True, "truncation_direction": "Left"}, {"normalize": True, "truncate": "START"}),
        ({"truncation_direction": "left"}, {"normalize": True, "truncate": "START"}),
        ({"truncate": False, "truncation_direction": "Right"}, {"normalize": True, "truncate": "NONE"}),
        ({"prompt_name": "query", "truncate": None}, {"normalize": True, "prompt_name": "query"}),
        (
            {"parameters": {"truncate": False}, "options": {"wait_for_model": True}},
            {"normalize": True, "truncate": "NONE"},
        ),
    ],
)
async def test_parameters_have_teis_meaning(serving, dispatcher, given, sent):
    assert (await ask(serving, inputs=["a"], **given)).status == 200
    assert parameters(dispatcher) == sent


@pytest.mark.parametrize(
    ("path", "body", "word"),
    [
        ("/embed", {}, "inputs must be"),
        ("/embed", {"inputs": []}, "inputs must be"),
        ("/embed", {"inputs": {"source_sentence": "a", "sentences": ["b"]}}, "inputs"),
        ("/embed", {"inputs": ["a", 1]}, "inputs"),
        ("/embed", {"inputs": "a", "truncat": True}, "truncat: there is no such field; did you mean truncate?"),
        ("/embed", {"inputs": "a", "truncate": "yes"}, "truncate must be true or false"),
        ("/embed", {"inputs": "a", "truncation_direction": "up"}, "truncation_direction must be right or left"),
        ("/embed", {"inputs": "a", "dimensions": 0}, "dimensions must be"),
        ("/embed", {"inputs": "a", "encoding_format": "base64"}, "encoding_format must be float"),
        ("/embed", {"inputs": "a", "parameters": {"top_k": 1}}, "top_k: there is no such field"),
        ("/similarity", {"inputs": ["a"]}, "source_sentence and sentences"),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, "sentences must be"),
        ("/similarity", {"inputs": {"source_sentence": 1, "sentences": ["a"]}}, "source_sentence must be"),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": [[1]]}}, "sentences must be"),
        ("/", {"inputs": 5}, "inputs"),
    ],
)
async def test_bad_input_is_one_clear_line(serving, dispatcher, path, body, word):
    answer = await ask(serving, path, **body)
    assert (answer.status, answer.body["error_type"]) == (422, "Validation")
    assert word in answer.body["error"]
    assert "\n" not in answer.body["error"]
    assert dispatcher.refusals == [grpc.StatusCode.INVALID_ARGUMENT]


@pytest.mark.parametrize(
    ("code", "message", "status", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, LONG, 413, "Validation"),
        (grpc.StatusCode.INVALID_ARGUMENT, "prompt_name: is not one of the model's", 422, "Validation"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "overloaded", 429, "Overloaded"),
        (grpc.StatusCode.UNAVAILABLE, "no server is ready", 503, "Unhealthy"),
        (grpc.StatusCode.INTERNAL, "the batch failed", 424, "Backend"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "late", 504, "Backend"),
    ],
)
async def test_failures_have_teis_form(serving, dispatcher, code, message, status, kind):
    dispatcher.failure = DispatchError(code, message)
    answer = await ask(serving, inputs="a")
    assert (answer.status, answer.body) == (status, {"error": message, "error_type": kind})


async def test_too_many_texts_are_413(serving, monkeypatch):
    monkeypatch.setattr("tritonembed_manager.router.apis.http.tei.MAX_INPUTS", 3)
    answer = await ask(serving, inputs=["a"] * 4)
    assert (answer.status, answer.body["error_type"]) == (413, "Validation")
    assert vector_requests.MAX_INPUTS == 32 * 1024


async def test_a_number_that_json_lacks_is_an_error(serving, dispatcher):
    dispatcher.answer = lambda _: infer_response([np.full(DIMENSIONS, np.nan, "<f4")], [1])
    answer = await ask(serving, inputs="a")
    assert (answer.status, answer.body["error_type"]) == (424, "Backend")


async def test_token_ids_must_be_the_models_own(serving, dispatcher):
    assert (await ask(serving, inputs=[101, 102])).status == 200
    foreign = await ask(serving, inputs=[[15339, 1917]])
    assert (foreign.status, foreign.body["error_type"]) == (422, "Validation")
    assert dispatcher.requests[0].model_name == "embedder"


def token_outputs(request):
    """The answer of a model with sparse weights and vectors of tokens: two of each per text, none for an empty text."""
    [asked] = [output.name for output in request.outputs if output.name != "num_tokens"]
    elements = []
    for text in texts(request):
        count = 2 if text else 0
        ids, weights = np.array([3, 70_000][:count], "<i4"), np.array([0.5, len(text)][:count], "<f4")
        rows = np.stack([vector(text), vector(text + b"2")])[:count]
        content = ids.tobytes() + weights.tobytes() if asked == "sparse" else rows.tobytes()
        elements.append(np.int32(count).tobytes() + content)
    answer = service_pb2.ModelInferResponse(model_name="embedding")
    answer.outputs.add(name=asked, datatype="BYTES", shape=(len(elements), 1))
    answer.outputs.add(name="num_tokens", datatype="INT32", shape=(len(elements), 1))
    answer.raw_output_contents.extend([frame(elements), np.ones(len(elements), "<i4").tobytes()])
    return answer


async def test_weights_of_tokens(serving, dispatcher):
    dispatcher.answer = token_outputs
    answer = await ask(serving, "/embed_sparse", inputs=["abc", ""], truncate=True)
    assert answer.body == [[{"index": 3, "value": 0.5}, {"index": 70_000, "value": 3.0}], []]
    assert parameters(dispatcher) == {"outputs": "sparse", "truncate": "END"}


async def test_vectors_of_tokens(serving, dispatcher):
    dispatcher.answer = token_outputs
    given = [f"text {number}" for number in range(1500)]
    answer = await ask(serving, "/embed_all", inputs=[*given, ""])
    assert parameters(dispatcher) == {"outputs": "multi_vector"}
    assert answer.body[-1] == []
    expected = [[vector(text.encode()), vector(text.encode() + b"2")] for text in given]
    assert (np.array(answer.body[:-1], "<f4") == expected).all()


@pytest.mark.parametrize("path", ["/embed_sparse", "/embed_all"])
async def test_a_model_without_them_says_so(serving, dispatcher, path):
    unexpected = "unexpected inference output 'sparse' for model 'embedding'"
    dispatcher.failure = DispatchError(grpc.StatusCode.INVALID_ARGUMENT, unexpected)
    answer = await ask(serving, path, inputs="a")
    assert (answer.status, answer.body) == (
        424,
        {"error": "the servers' model has no such output", "error_type": "Backend"},
    )


@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings", "/v2/embed"])
async def test_a_model_of_weights_alone_has_no_dense_vectors(serving, dispatcher, path):
    dispatcher.answer = lambda request: infer_response([np.empty(0, "<f4")] * len(texts(request)), [1])
    body = {"inputs": "a"} if path == "/embed" else {"input": "a"}
    body = {"texts": ["a"], "input_type": "search_query"} if path == "/v2/embed" else body
    answer = await serving.post(path, data=json.dumps(body))
    assert answer.status == (422 if path == "/embed" else 400)
    assert b"the model gives no dense vectors" in answer.raw
    assert not dispatcher.refusals


def tokenizer_outputs(request):
    """The answer of a tokenizer: JSON for `tokens`, the ids as text for `decoded`."""
    [asked] = [output.name for output in request.outputs]
    made = {
        "tokens": lambda text: json.dumps([{"id": 5, "text": text.decode(), "special": False}]).encode(),
        "decoded": lambda ids: repr(np.frombuffer(ids, "<i4").tolist()).encode(),
    }[asked]
    elements = [made(element) for element in texts(request)]
    answer = service_pb2.ModelInferResponse(model_name="tokenizer")
    answer.outputs.add(name=asked, datatype="BYTES", shape=(len(elements), 1))
    answer.raw_output_contents.append(frame(elements))
    return answer


@pytest.mark.parametrize(
    ("more", "sent"),
    [
        ({}, {"add_special_tokens": True}),
        ({"add_special_tokens": False, "prompt_name": "query"}, {"add_special_tokens": False, "prompt_name": "query"}),
        ({"add_special_tokens": None, "prompt_name": None}, {"add_special_tokens": True}),
    ],
)
async def test_tokens_are_the_servers(serving, dispatcher, more, sent):
    dispatcher.answer = tokenizer_outputs
    answer = await ask(serving, "/tokenize", inputs=["a", "zwei Wörter"], **more)
    assert [[token["text"] for token in tokens] for tokens in answer.body] == [["a"], ["zwei Wörter"]]
    assert dispatcher.requests[0].model_name == "tokenizer"
    assert parameters(dispatcher) == sent
    one = await ask(serving, "/tokenize", inputs="a")
    assert len(one.body) == 1


async def test_ids_become_texts(serving, dispatcher):
    dispatcher.answer = tokenizer_outputs
    answer = await ask(serving, "/decode", ids=[[101, 7, 102], [3]], skip_special_tokens=False)
    assert answer.body == ["[101, 7, 102]", "[3]"]
    assert parameters(dispatcher) == {"skip_special_tokens": False}
    assert (await ask(serving, "/decode", ids=[4, 5])).body == ["[4, 5]"]
    many = await ask(serving, "/decode", ids=[[number] for number in range(3000)])
    assert many.body == [f"[{number}]" for number in range(3000)]


@pytest.mark.parametrize(
    ("path", "body", "word"),
    [
        ("/tokenize", {}, "inputs must be"),
        ("/tokenize", {"inputs": [[1]]}, "inputs must be a string or a list of strings"),
        ("/tokenize", {"inputs": "a", "add_special_tokens": 1}, "add_special_tokens must be true or false"),
        ("/tokenize", {"inputs": "a", "prompt_name": 1}, "prompt_name must be a string"),
        ("/tokenize", {"inputs": "a", "truncate": True}, "truncate: there is no such field"),
        ("/decode", {}, "ids must be a list"),
        ("/decode", {"ids": []}, "ids must be a list"),
        ("/decode", {"ids": "a"}, "ids must be a list"),
        ("/decode", {"ids": ["a"]}, "ids: "),
        ("/decode", {"ids": [2**40]}, "ids: "),
        ("/decode", {"ids": [1], "skip_special_tokens": "yes"}, "skip_special_tokens must be true or false"),
    ],
)
async def test_bad_questions_about_tokens_are_one_clear_line(serving, dispatcher, path, body, word):
    answer = await ask(serving, path, **body)
    assert (answer.status, answer.body["error_type"]) == (422, "Validation")
    assert word in answer.body["error"]
    assert not dispatcher.requests


async def test_a_tokenizers_answer_that_does_not_fit_is_an_error(serving, dispatcher):
    dispatcher.answer = lambda _: tokenizer_outputs(
        service_pb2.ModelInferRequest(
            outputs=[service_pb2.ModelInferRequest.InferRequestedOutputTensor(name="decoded")],
            raw_input_contents=[frame([b"", b""])],
        )
    )
    answer = await ask(serving, "/decode", ids=[1])
    assert (answer.status, answer.body["error_type"]) == (424, "Backend")


async def test_info_names_the_model(serving, dispatcher):
    found = (await serving.get("/info")).body
    assert (found["max_input_length"], found["model_dtype"]) == (None, None)
    dispatcher.views = [server_view("a", space="0123456789ab-bfloat16", max_length=512)]
    found = (await serving.get("/info")).body
    assert (found["max_input_length"], found["model_dtype"]) == (512, "bfloat16")
    assert (found["model_id"], found["model_type"], found["max_client_batch_size"]) == (MODEL, {"embedding": {}}, 32768)
