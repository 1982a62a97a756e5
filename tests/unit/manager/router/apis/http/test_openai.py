"""OpenAI's API, with its own client and by hand."""

import asyncio
import base64
import json

import grpc
import httpx
import numpy as np
import openai
import pytest
from tests.fakes.data_plane import data_plane
from tests.fakes.triton import infer_response, texts, vector
from tests.unit.manager.router.apis.http.conftest import MODEL, running

from tritonembed_manager.router.apis.http import bodies, vector_requests
from tritonembed_manager.router.interfaces import DispatchError

INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture
async def client(serving):
    async with openai.AsyncOpenAI(api_key="none", base_url=f"{serving.base}/v1", max_retries=0) as client:
        yield client


def expected(*given):
    return np.stack([vector(text.encode()) for text in given])


def found(response):
    return np.array([item.embedding for item in response.data], "<f4")


@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
async def test_the_official_client_gets_the_exact_vectors(client, encoding):
    response = await client.embeddings.create(model=MODEL, input=["one", "zwei Wörter", ""], **encoding)
    if encoding.get("encoding_format") == "base64":
        rows = [np.frombuffer(base64.b64decode(item.embedding), "<f4") for item in response.data]
        assert (np.stack(rows) == expected("one", "zwei Wörter", "")).all()
    else:
        assert (found(response) == expected("one", "zwei Wörter", "")).all()
    assert [(item.index, item.object) for item in response.data] == [
        (0, "embedding"),
        (1, "embedding"),
        (2, "embedding"),
    ]
    assert (response.object, response.model) == ("list", MODEL)
    assert (response.usage.prompt_tokens, response.usage.total_tokens) == (15, 15)


async def test_one_string_is_one_text(client, dispatcher):
    response = await client.embeddings.create(model=MODEL, input="one text", user="somebody")
    [request] = dispatcher.requests
    assert (request.model_name, texts(request)) == ("embedding", [b"one text"])
    assert [(tensor.name, list(tensor.shape)) for tensor in request.inputs] == [("text", [1, 1])]
    assert (found(response) == expected("one text")).all()
    assert not request.parameters
    assert dispatcher.timeouts == [None]


@pytest.mark.parametrize("ids", [[101, 7, 102], [[101, 7, 102]], [[101, 7, 102], [101, 102]]])
async def test_token_ids_are_sent_to_the_embedder(client, dispatcher, ids):
    response = await client.embeddings.create(model=MODEL, input=ids)
    [request] = dispatcher.requests
    rows = ids if isinstance(ids[0], list) else [ids]
    assert request.model_name == "embedder"
    assert [(tensor.name, list(tensor.shape)) for tensor in request.inputs] == [("token_ids", [len(rows), 1])]
    assert texts(request) == [np.array(row, "<i4").tobytes() for row in rows]
    assert len(response.data) == len(rows)


async def test_options_become_parameters(client, dispatcher):
    extra = {"input_type": "query", "truncate": "NONE", "normalize": False}
    await client.embeddings.create(model=MODEL, input="a", dimensions=4, extra_body=extra)
    parameters = dispatcher.requests[0].parameters
    assert parameters["dimensions"].int64_param == 4
    assert (parameters["input_type"].string_param, parameters["truncate"].string_param) == ("query", "NONE")
    assert parameters["normalize"].WhichOneof("parameter_choice") == "bool_param"


async def test_a_long_text_is_embedded_in_chunks(client, dispatcher):
    extra = {"truncate": "CHUNK", "chunk_tokens": 32, "chunk_overlap": 0}
    await client.embeddings.create(model=MODEL, input="a", extra_body=extra)
    parameters = dispatcher.requests[0].parameters
    assert parameters["truncate"].string_param == "CHUNK"
    assert (parameters["chunk_tokens"].int64_param, parameters["chunk_overlap"].int64_param) == (32, 0)
    assert parameters["chunk_overlap"].WhichOneof("parameter_choice") == "int64_param"


@pytest.mark.parametrize(
    "extra", [{"prompt_name": "query"}, {"prompt": "a prompt: "}, {"prompt": ""}, {"instruction": "find"}]
)
async def test_a_prompt_is_sent_with_every_part(client, dispatcher, extra):
    await client.embeddings.create(model=MODEL, input=["a"] * 1025, extra_body=extra)
    assert len(dispatcher.requests) == 2
    for request in dispatcher.requests:
        assert {name: value.string_param for name, value in request.parameters.items()} == extra


async def test_a_null_prompt_is_no_prompt(client, dispatcher):
    extra = {"prompt_name": None, "prompt": None, "instruction": None}
    await client.embeddings.create(model=MODEL, input=[101, 102], extra_body=extra)
    assert not dispatcher.requests[0].parameters


async def test_many_inputs_are_split_and_come_back_in_order(client, dispatcher):
    given = [f"text {number}" for number in range(2500)]
    response = await client.embeddings.create(model="embedding", input=given)
    assert sorted(len(texts(request)) for request in dispatcher.requests) == [452, 1024, 1024]
    assert (found(response) == expected(*given)).all()
    assert [item.index for item in response.data] == list(range(2500))
    assert response.usage.total_tokens == sum(map(len, given))


async def test_if_one_part_fails_the_others_are_cancelled(serving, dispatcher):
    dispatcher.released.clear()
    whole = dispatcher.infer

    async def infer(request, **more):
        if len(dispatcher.requests) == 1:
            raise DispatchError(INVALID, "text[3]: is wrong")
        return await whole(request, **more)

    dispatcher.infer = infer
    answer = await serving.post("/v1/embeddings", json={"input": ["a"] * 3000})
    assert (answer.status, answer.body["error"]["message"]) == (400, "text[3]: is wrong")
    await dispatcher.cancelled.acquire()


async def test_a_drain_finishes_the_parts_that_were_not_sent_yet():
    async with data_plane(1) as plane, running(plane.dispatcher) as serving:
        [fake] = plane.fakes
        fake.hang()
        asked = asyncio.ensure_future(serving.post("/v1/embeddings", json={"input": ["a"] * 9000}))
        await fake.wait_inside(2)
        plane.admission.drain()
        fake.release()
        answer = await asked
        assert (answer.status, len(answer.body["data"])) == (200, 9000)
        await plane.admission.drained()
        assert (await serving.post("/v1/embeddings", json={"input": "a"})).status == 503


async def test_a_call_of_many_parts_takes_one_place_and_is_refused_before_any_work():
    async with data_plane(1, max_in_flight=1, per_server=3) as plane, running(plane.dispatcher) as serving:
        answer = await serving.post("/v1/embeddings", json={"input": ["a"] * 9000})
        assert (answer.status, len(answer.body["data"])) == (200, 9000)
        assert plane.dispatcher.meter.collect().total.requests == 1
        [fake] = plane.fakes
        fake.hang()
        holding = plane.start()
        await fake.wait_inside(1)
        before = len(fake.requests)
        assert (await serving.post("/v1/embeddings", json={"input": ["a"] * 9000})).status == 429
        assert len(fake.requests) == before
        fake.release()
        await asyncio.gather(*holding)


async def test_models(client):
    listed = await client.models.list()
    assert [(model.id, model.owned_by) for model in listed.data] == [(MODEL, "tritonembed")]
    assert (await client.models.retrieve(MODEL)).id == MODEL
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("another")


async def test_another_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        await client.embeddings.create(model="another", input="a")
    assert caught.value.code == "model_not_found"
    assert "another" not in str(caught.value.message)


@pytest.mark.parametrize(
    ("body", "parameter", "words"),
    [
        ({}, "input", "input must be"),
        ({"input": None}, "input", "input must be"),
        ({"input": []}, "input", "not empty"),
        ({"input": 3}, "input", "input must be"),
        ({"input": {"a": 1}}, "input", "input must be"),
        ({"input": ["secret", 1]}, "input", "text[1] is int, not str"),
        ({"input": [1, "secret"]}, "input", "token_ids[0] is not a flat sequence of ints"),
        ({"input": [[1], ["secret"]]}, "input", "token_ids[1] is not a flat sequence of ints"),
        ({"input": [[1], 2]}, "input", "token_ids[1] is not a flat sequence of ints"),
        ({"input": [1.5]}, "input", "token_ids[0] is not a flat sequence of ints"),
        ({"input": [True, False]}, "input", "token_ids[0]"),
        ({"input": [2**31]}, "input", "token_ids[0]: an id does not fit in 32 bits"),
        ({"input": [2**80]}, "input", "token_ids[0]"),
        ({"input": [None]}, "input", "token_ids[0]"),
        ({"input": [{}]}, "input", "token_ids[0]"),
        ({"input": "secret\ud800"}, "input", "text[0]: a lone surrogate"),
        ({"input": ["secret"] * 32769}, "input", "at most 32768 are allowed"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "float or base64"),
        ({"input": "a", "dimensions": 0}, "dimensions", "whole number"),
        ({"input": "a", "dimensions": True}, "dimensions", "whole number"),
        ({"input": "a", "dimensions": "4"}, "dimensions", "whole number"),
        ({"input": "a", "dimensions": 2**63}, "dimensions", "whole number"),
        ({"input": "a", "chunk_tokens": 0}, "chunk_tokens", "whole number of at least 1"),
        ({"input": "a", "chunk_overlap": 1.5}, "chunk_overlap", "whole number of at least 0"),
        ({"input": [1, 2], "chunk_tokens": 8}, "chunk_tokens", "input has token ids"),
        ({"input": "a", "model": 1}, "model", "must be a string"),
        ({"input": "a", "truncate": 1}, "truncate", "must be a string"),
        ({"input": "a", "input_type": []}, "input_type", "must be a string"),
        ({"input": "a", "prompt_name": 1}, "prompt_name", "must be a string"),
        ({"input": "a", "prompt": ["secret"]}, "prompt", "must be a string"),
        ({"input": "a", "prompt": "é" * 32769}, "prompt", "prompt has 65538 bytes; at most 65536 are allowed"),
        ({"input": "a", "prompt": "secret\ud800"}, None, "lone surrogate"),
        ({"input": "a", "prompt": "", "prompt_name": "secret"}, "prompt_name", "exclude each other"),
        ({"input": "a", "prompt": "secret", "instruction": "secret"}, "prompt", "exclude each other"),
        ({"input": "a", "instruction": ["secret"]}, "instruction", "must be a string"),
        ({"input": "a", "instruction": "é" * 32769}, "instruction", "at most 65536 are allowed"),
        ({"input": [1, 2], "instruction": "secret"}, "instruction", "input has token ids"),
        ({"input": [1, 2], "prompt": ""}, "prompt", "input has token ids"),
        ({"input": [[101, 102]], "prompt_name": "secret"}, "prompt_name", "input has token ids"),
        ({"input": "a", "normalize": 1}, "normalize", "true or false"),
        ({"input": "a", "truncate": "secret\ud800"}, None, "lone surrogate"),
    ],
)
async def test_a_bad_request_names_its_field_in_one_line(serving, dispatcher, body, parameter, words):
    answer = await serving.post("/v1/embeddings", data=json.dumps(body))
    error = answer.body["error"]
    assert (answer.status, error["type"], error["param"]) == (400, "invalid_request_error", parameter)
    assert words in error["message"]
    assert "secret" not in error["message"]
    assert "\n" not in error["message"]
    assert not dispatcher.requests


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dimension", "dimension: there is no such field; did you mean dimensions?"),
        ("inputs", "inputs: there is no such field; did you mean input?"),
        ("stop", "stop: there is no such field; there are input, model, encoding_format"),
    ],
)
async def test_an_unknown_field_is_named(serving, dispatcher, name, words):
    answer = await serving.post("/v1/embeddings", json={"input": "secret", name: "secret"})
    error = answer.body["error"]
    assert (answer.status, error["param"], error["code"]) == (400, name, "unknown_parameter")
    assert error["message"].startswith(words)
    assert "secret" not in error["message"]
    assert not dispatcher.requests


@pytest.mark.parametrize("name", ["", "a text in the wrong place", "a\x1b[31m", "a\n", "n" * 65, "ключ", "\ud800"])
async def test_the_error_does_not_repeat_an_invalid_name_of_a_field(serving, name):
    error = (await serving.post("/v1/embeddings", data=json.dumps({"input": "a", name: 1}))).body["error"]
    assert error["message"].startswith("the request has an unknown field; known fields are input, model")
    assert error["param"] is None


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "line 1, column 1"),
        (b'{"input": "secret', "line 1, column 11"),
        (b'["secret"]', "not a JSON object"),
        (b'{"input": "secret\xff"}', "not UTF-8"),
        (b'{"input": ' + b"[" * 100_000, "nested too deep"),
        (b'{"input": ' + b"1" * 5000 + b"}", "a number is too long"),
    ],
)
async def test_invalid_json_is_refused_in_one_line(serving, body, words):
    answer = await serving.post("/v1/embeddings", data=body)
    assert answer.status == 400
    assert words in answer.body["error"]["message"]
    assert "secret" not in answer.body["error"]["message"]


async def test_a_body_that_is_too_large_is_refused_before_it_is_read(serving, dispatcher):
    async def endless():
        # The body is announced, but only its first byte is sent.
        yield b"{"
        await dispatcher.cancelled.acquire()

    headers = {"Content-Length": str(bodies.MAX_BODY + 1)}
    answer = await serving.post("/v1/embeddings", data=endless(), headers=headers)
    assert (answer.status, answer.body["error"]["param"]) == (413, None)
    assert str(bodies.MAX_BODY) in answer.body["error"]["message"]


async def test_overload_is_429_with_the_time_of_a_retry(client, dispatcher):
    dispatcher.failure = DispatchError(grpc.StatusCode.RESOURCE_EXHAUSTED, "overloaded: try again", 0.25)
    with pytest.raises(openai.RateLimitError) as caught:
        await client.embeddings.create(model=MODEL, input="a")
    assert caught.value.response.headers["Retry-After"] == "1"
    assert caught.value.response.headers["Retry-After-Ms"] == "250"
    assert caught.value.body == {
        "message": "overloaded: try again",
        "type": "rate_limit_error",
        "param": None,
        "code": "rate_limit_exceeded",
    }


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        (INVALID, 400, "invalid_request_error"),
        (grpc.StatusCode.UNAVAILABLE, 503, "server_error"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 504, "server_error"),
        (grpc.StatusCode.INTERNAL, 500, "server_error"),
        (grpc.StatusCode.UNKNOWN, 500, "server_error"),
    ],
)
async def test_other_codes(serving, dispatcher, code, status, kind):
    dispatcher.failure = DispatchError(code, "a reason")
    answer = await serving.post("/v1/embeddings", json={"input": "a"})
    assert (answer.status, answer.body["error"]["message"], answer.body["error"]["type"]) == (status, "a reason", kind)
    assert "Retry-After" not in answer.headers


async def test_a_client_that_goes_away_cancels_its_request(serving, dispatcher):
    dispatcher.released.clear()
    async with httpx.AsyncClient() as leaving:
        timeout = httpx.Timeout(20, read=0.2)
        with pytest.raises(httpx.ReadTimeout):
            await leaving.post(f"{serving.base}/v1/embeddings", json={"input": "a"}, timeout=timeout)
    await dispatcher.cancelled.acquire()


async def test_an_answer_that_does_not_fit_is_a_server_error(serving, dispatcher, caplog):
    dispatcher.answer = lambda request: infer_response([vector(b"a")] * 2, [1, 1])
    answer = await serving.post("/v1/embeddings", json={"input": "secret"})
    assert (answer.status, answer.body["error"]["type"]) == (500, "server_error")
    assert "secret" not in caplog.text


async def test_a_number_that_json_lacks_is_an_error_and_not_nan(serving, dispatcher):
    dispatcher.answer = lambda request: infer_response([np.array([1, np.nan], "<f4")], [1])
    answer = await serving.post("/v1/embeddings", json={"input": "a"})
    assert answer.status == 500
    answer = await serving.post("/v1/embeddings", json={"input": "a", "encoding_format": "base64"})
    assert answer.status == 200


async def test_the_error_of_a_bug_holds_nothing_of_the_text(serving, dispatcher, caplog):
    dispatcher.failure = RuntimeError("secret text")
    answer = await serving.post("/v1/embeddings", json={"input": "secret"})
    assert (answer.status, answer.body["error"]["message"]) == (500, "internal error of the manager")
    assert "RuntimeError in tests" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("path", ["/v1/nothing", "/v1/embeddings/x"])
async def test_an_unknown_path_has_openais_form_too(serving, path):
    answer = await serving.post(path, json={})
    assert (answer.status, answer.body["error"]["type"]) == (404, "invalid_request_error")


async def test_a_wrong_method_is_refused_with_the_allowed_methods(serving):
    answer = await serving.get("/v1/embeddings")
    assert (answer.status, answer.headers["Allow"]) == (405, "POST")
    assert vector_requests.MAX_INPUTS >= 2048  # OpenAI's limit


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ("in ensemble 'embedding', dimensions: 385 is over the model's 384", "dimensions"),
        ("dimensions: 385 is over the model's 384", "dimensions"),
        ("in ensemble 'embedding', text: sentence 2 has 600 tokens", "input"),
        ("token_ids: sentence 0 is empty", "input"),
        ("something: else", None),
        ("no field at all", None),
    ],
)
async def test_an_error_of_a_server_names_its_field(serving, dispatcher, message, field):
    dispatcher.failure = DispatchError(INVALID, message)
    answer = await serving.post("/v1/embeddings", json={"input": "a", "dimensions": 385})
    assert answer.status == 400
    assert answer.body["error"] == {"message": message, "type": "invalid_request_error", "param": field, "code": None}


async def test_a_slash_after_a_path_changes_nothing(serving):
    assert (await serving.post("/v1/embeddings/", json={"input": "a"})).status == 200
    for path in ("/v1/models", f"/v1/models/{MODEL}", "/health", "/metrics", "/v2/health/live", "/v2/health/ready"):
        plain, slashed = await serving.get(path), await serving.get(f"{path}/")
        assert (plain.status, slashed.status) == (200, 200), path
    assert (await serving.get("/v1/models/other/")).status == 404
    assert (await serving.get("/status.css/")).status == 404


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "", "application/json; charset=x"])
async def test_the_content_type_does_not_matter(serving, kind):
    answer = await serving.post("/v1/embeddings", data=b'{"input": "a"}', headers={"Content-Type": kind})
    assert answer.status == 200


async def test_a_body_may_begin_with_a_byte_order_mark(serving):
    answer = await serving.post("/v1/embeddings", data=b'\xef\xbb\xbf{"input": "a"}')
    assert answer.status == 200


@pytest.mark.parametrize("encoding", ["float", "base64"])
@pytest.mark.parametrize("kind", ["int8", "ubinary", "float16"])
async def test_nims_embedding_type_is_passed_on(client, dispatcher, kind, encoding):
    made = {"int8": np.int8, "ubinary": np.uint8, "float16": np.float16}[kind]
    rows = np.arange(-4, 4).astype(made)[None]
    dispatcher.answer = lambda _: infer_response([rows[0]], [1])
    answer = await client.embeddings.create(
        model=MODEL, input="a", encoding_format=encoding, extra_body={"embedding_type": kind}
    )
    assert dispatcher.requests[0].parameters["embedding_type"].string_param == kind
    found = answer.data[0].embedding
    if encoding == "base64":
        found = np.frombuffer(base64.b64decode(found), made).tolist()
    assert found == rows[0].tolist()


async def test_an_unknown_embedding_type_is_named(client):
    with pytest.raises(openai.BadRequestError, match="embedding_type must be one of float, float16") as caught:
        await client.embeddings.create(model=MODEL, input="a", extra_body={"embedding_type": "double"})
    assert caught.value.param == "embedding_type"
