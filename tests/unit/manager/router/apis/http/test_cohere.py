"""Cohere's /v1/embed and /v2/embed, by hand."""

import base64
import json

import grpc
import numpy as np
import pytest
from sentence_transformers.util.quantization import quantize_embeddings
from tests.fakes.triton import infer_response, texts, vector
from tests.unit.manager.router.apis.http.conftest import MODEL

from tritonembed_manager.router.interfaces import DispatchError

TEXTS = ["one", "zwei Wörter", 'a "quoted" \n line']
V2 = {"model": MODEL, "input_type": "search_document", "texts": TEXTS}


async def ask(serving, path="/v2/embed", **body):
    return await serving.post(path, data=json.dumps(body))


def expected():
    return np.stack([vector(text.encode()) for text in TEXTS])


async def test_all_types_come_from_one_pass(serving, dispatcher):
    kinds = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
    answer = await ask(serving, **V2, embedding_types=kinds)
    assert answer.status == 200
    assert len(dispatcher.requests) == 1
    found = answer.body["embeddings"]
    assert list(found) == kinds
    assert (np.array(found["float"], "<f4") == expected()).all()
    assert found["base64"] == [base64.b64encode(row.tobytes()).decode() for row in expected()]
    # sentence-transformers' formulas.
    for kind in ("binary", "ubinary"):
        assert (np.array(found[kind]) == quantize_embeddings(expected(), kind)).all()
    assert (np.array(found["int8"]) == np.rint(expected() * 127)).all()
    assert (np.array(found["uint8"]) == np.rint(expected() * 127) + 128).all()
    assert answer.body["texts"] == TEXTS
    assert answer.body["response_type"] == "embeddings_by_type"
    assert answer.body["meta"]["billed_units"] == {"input_tokens": sum(len(text.encode()) for text in TEXTS)}
    assert answer.body["meta"]["api_version"] == {"version": "2"}
    assert answer.body["id"]


async def test_integers_are_of_vectors_of_length_one(serving, dispatcher):
    dispatcher.answer = lambda request: infer_response([5 * vector(text) for text in texts(request)], [1] * 3)
    found = (await ask(serving, **V2, embedding_types=["int8", "float"])).body["embeddings"]
    assert (np.array(found["int8"]) == np.rint(expected() * 127)).all()
    assert np.allclose(found["float"], 5 * expected())


async def test_v1_without_types_is_a_list(serving):
    answer = await ask(serving, "/v1/embed", texts=TEXTS)
    assert answer.body["response_type"] == "embeddings_floats"
    assert (np.array(answer.body["embeddings"], "<f4") == expected()).all()
    assert answer.body["texts"] == TEXTS
    typed = await ask(serving, "/v1/embed", texts=TEXTS, embedding_types=["ubinary"])
    assert (typed.body["response_type"], list(typed.body["embeddings"])) == ("embeddings_by_type", ["ubinary"])


async def test_many_texts_come_back_in_order(serving):
    given = [f"text {number}" for number in range(3500)]
    body = (await ask(serving, **{**V2, "texts": given}, embedding_types=["float", "ubinary"])).body
    rows = np.stack([vector(text.encode()) for text in given])
    assert (np.array(body["embeddings"]["float"], "<f4") == rows).all()
    assert (np.array(body["embeddings"]["ubinary"]) == np.packbits(rows > 0, axis=1)).all()
    assert body["texts"] == given


async def test_inputs_are_texts_in_objects(serving):
    inputs = [{"content": [{"type": "text", "text": text}]} for text in TEXTS]
    answer = await ask(serving, model=MODEL, input_type="search_query", inputs=inputs)
    assert (np.array(answer.body["embeddings"]["float"], "<f4") == expected()).all()


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"input_type": "search_query"}, {"input_type": "query"}),
        ({"input_type": "search_document", "truncate": "NONE"}, {"input_type": "passage", "truncate": "NONE"}),
        ({"input_type": "classification", "output_dimension": 4}, {"dimensions": 4}),
        ({"input_type": "clustering", "truncate": "START", "priority": 3}, {"truncate": "START"}),
    ],
)
async def test_fields_become_parameters(serving, dispatcher, given, sent):
    assert (await ask(serving, **{**V2, **given})).status == 200
    found = dispatcher.requests[0].parameters.items()
    assert {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in found} == sent


@pytest.mark.parametrize(
    ("path", "body", "word"),
    [
        ("/v2/embed", {"texts": ["a"]}, "input_type must be given"),
        ("/v2/embed", {"input_type": "search_query"}, "texts must be given"),
        ("/v2/embed", {**V2, "inputs": []}, "texts and inputs exclude each other"),
        ("/v2/embed", {**V2, "texts": []}, "texts must be a list, and not empty"),
        ("/v2/embed", {**V2, "texts": "a"}, "texts must be a list"),
        ("/v2/embed", {**V2, "texts": [[101, 102]]}, "texts must be a list of strings"),
        ("/v2/embed", {**V2, "input_type": "image"}, "input_type must be one of search_query"),
        ("/v2/embed", {**V2, "input_type": []}, "input_type must be one of"),
        ("/v2/embed", {**V2, "images": ["data:"]}, "images: this model embeds texts only"),
        ("/v2/embed", {**V2, "embedding_types": ["float16"]}, "embedding_types: must be of float, int8"),
        ("/v2/embed", {**V2, "embedding_types": [[]]}, "embedding_types: must be of"),
        ("/v2/embed", {**V2, "embedding_types": "float"}, "embedding_types must be a list"),
        ("/v2/embed", {**V2, "truncate": "CHUNK"}, "truncate must be one of NONE, START, END"),
        ("/v2/embed", {**V2, "truncate": {}}, "truncate must be one of"),
        ("/v2/embed", {**V2, "output_dimension": 0}, "output_dimension must be"),
        ("/v2/embed", {**V2, "max_tokens": 5}, "max_tokens"),
        ("/v2/embed", {**V2, "text": "a"}, "text: there is no such field; did you mean texts?"),
        ("/v1/embed", {"texts": ["a"], "output_dimension": 5}, "output_dimension: there is no such field"),
        ("/v2/embed", {"input_type": "search_query", "inputs": [{"content": []}]}, "content must be a list"),
        (
            "/v2/embed",
            {"input_type": "search_query", "inputs": [{"content": [{"type": "image_url"}]}]},
            "inputs: this model embeds texts only",
        ),
    ],
)
async def test_bad_input_is_one_clear_line(serving, dispatcher, path, body, word):
    answer = await ask(serving, path, **body)
    assert (answer.status, list(answer.body)) == (400, ["message"])
    assert word in answer.body["message"]
    assert "\n" not in answer.body["message"]
    assert dispatcher.refusals == [grpc.StatusCode.INVALID_ARGUMENT]


async def test_failures_have_coheres_form(serving, dispatcher):
    unknown = await ask(serving, **{**V2, "model": "embed-v4.0"})
    assert (unknown.status, list(unknown.body)) == (404, ["message"])
    dispatcher.failure = DispatchError(grpc.StatusCode.RESOURCE_EXHAUSTED, "overloaded", 2.0)
    answer = await ask(serving, **V2)
    assert (answer.status, answer.body) == (429, {"message": "overloaded"})
    assert answer.headers["Retry-After"] == "2"
