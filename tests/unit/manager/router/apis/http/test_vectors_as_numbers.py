"""KServe's JSON and binary answers with vectors as FP32 numbers."""

import json

import numpy as np
import pytest
from tests.fakes.triton import infer_response, texts, vector
from tritonclient.grpc import service_pb2

TEXTS = ["one", "zwei Wörter", "three"]
AS = {"as": "FP32"}
URL = "/v2/models/embedding/infer"


def body(*given, outputs=None, **more):
    found = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [len(given), 1], "data": list(given)}], **more}
    return found if outputs is None else {**found, "outputs": outputs}


def expected(*given):
    return np.stack([vector(text.encode()) for text in given])


def numbers(tensor):
    assert tensor["datatype"] == "FP32"
    return np.array(tensor["data"], "<f4").reshape(tensor["shape"])


@pytest.mark.parametrize(
    ("more", "names"),
    [
        ({"parameters": AS}, ["embedding", "num_tokens"]),
        ({"outputs": [{"name": "embedding", "parameters": AS}]}, ["embedding"]),
        ({"outputs": [{"name": "embedding", "parameters": {**AS, "binary_data": False}}]}, ["embedding"]),
        ({"outputs": [{"name": "embedding_fp32"}]}, ["embedding_fp32"]),
        ({"parameters": AS, "outputs": [{"name": "embedding"}, {"name": "num_tokens"}]}, ["embedding", "num_tokens"]),
        ({"outputs": [{"name": "embedding_fp32"}, {"name": "num_tokens"}]}, ["embedding_fp32", "num_tokens"]),
    ],
)
async def test_json_has_the_exact_numbers(serving, dispatcher, more, names):
    answer = await serving.post(URL, json=body(*TEXTS, **more))
    assert answer.status == 200
    found = {output["name"]: output for output in answer.body["outputs"]}
    # The fake answers with both outputs, whatever is asked for.
    assert set(names) <= set(found)
    assert found[names[0]]["shape"] == [3, 8]
    assert (numbers(found[names[0]]) == expected(*TEXTS)).all()
    [sent] = dispatcher.requests
    assert texts(sent) == [text.encode() for text in TEXTS]
    assert "as" not in sent.parameters
    assert {output.name for output in sent.outputs} <= {"embedding", "num_tokens"}
    assert not any(output.parameters for output in sent.outputs)


async def test_numbers_may_be_binary_and_beside_the_bytes(serving):
    outputs = [
        {"name": "embedding", "parameters": {"binary_data": True}},
        {"name": "embedding_fp32", "parameters": {"binary_data": True}},
    ]
    answer = await serving.post(URL, json=body(*TEXTS, outputs=outputs))
    size = int(answer.headers["Inference-Header-Content-Length"])
    header, rest, found = json.loads(answer.raw[:size]), answer.raw[size:], {}
    for output in header["outputs"]:
        length = output.get("parameters", {}).get("binary_data_size")
        if length is not None:
            found[output["name"]], rest = (output, rest[:length]), rest[length:]
    assert not rest
    tensor, content = found["embedding_fp32"]
    assert (tensor["datatype"], tensor["shape"]) == ("FP32", [3, 8])
    assert content == expected(*TEXTS).tobytes()
    assert (found["embedding"][0]["datatype"], found["embedding"][0]["shape"]) == ("BYTES", [3, 1])
    assert found["embedding"][1] == b"".join(b"\x20\0\0\0" + row.tobytes() for row in expected(*TEXTS))


@pytest.mark.parametrize(
    ("url", "more", "word"),
    [
        (URL, {"parameters": {"as": "FP16"}}, "parameters: as must be FP32"),
        (URL, {"outputs": [{"name": "embedding", "parameters": {"as": 1}}]}, "output embedding: as must be FP32"),
        (URL, {"outputs": [{"name": "num_tokens", "parameters": AS}]}, "output num_tokens: as is for the output"),
        (URL, {"parameters": {**AS, "embedding_type": "int8"}}, "as: FP32 is for embedding_type float"),
        ("/v2/models/embedding_chunks/infer", {"parameters": AS}, "as: this model has no output embedding"),
        ("/v2/models/tokenizer/infer", {"outputs": [{"name": "embedding_fp32"}]}, "as: this model has no output"),
        (URL, {"outputs": [{"name": "embedding_fp32"}, {"name": "embedding"}]}, "output embedding: its bytes are not"),
    ],
)
async def test_bad_input_is_one_clear_line(serving, dispatcher, url, more, word):
    answer = await serving.post(url, json=body("a", **more))
    assert answer.status == 400
    assert word in answer.body["error"]
    assert not dispatcher.requests


async def test_an_answer_without_numbers_is_an_error(serving, dispatcher):
    dispatcher.answer = lambda _: infer_response([np.full(8, np.inf, "<f4")], [1])
    assert (await serving.post(URL, json=body("a", parameters=AS))).status == 500
    dispatcher.answer = lambda _: infer_response([np.array([1, 2, 3], np.uint8)], [1])
    answer = await serving.post(URL, json=body("a", parameters=AS))
    assert (answer.status, answer.body["error"]) == (500, "output embedding: its bytes are not float32 vectors")


async def test_the_embedder_has_numbers_too(serving, dispatcher):
    ids = {"name": "token_ids", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": 12}}
    head = json.dumps({"inputs": [ids], "parameters": AS}).encode()
    content = b"\x08\0\0\0" + np.array([101, 102], "<i4").tobytes()
    answer = await serving.post(
        "/v2/models/embedder/infer", data=head + content, headers={"Inference-Header-Content-Length": str(len(head))}
    )
    assert (numbers(answer.body["outputs"][0]) == vector(np.array([101, 102], "<i4").tobytes())).all()
    assert dispatcher.requests[0].model_name == "embedder"


@pytest.mark.parametrize("data", [TEXTS, TEXTS[0]])
async def test_litellms_names_are_understood(serving, dispatcher, data):
    # As its TritonEmbeddingConfig writes it; it reads every output as vectors.
    dispatcher.answer = only_embedding
    sent = {"inputs": [{"name": "input_text", "shape": [len(data)], "datatype": "BYTES", "data": data}]}
    answer = await serving.post("/triton/embeddings", json=sent)
    given = [data] if isinstance(data, str) else data
    assert answer.status == 200
    assert [(output["name"], output["shape"]) for output in answer.body["outputs"]] == [("embedding", [len(given), 8])]
    assert (numbers(answer.body["outputs"][0]) == expected(*given)).all()
    assert [output.name for output in dispatcher.requests[0].outputs] == ["embedding"]


def only_embedding(request):
    found = texts(request)
    answer = service_pb2.ModelInferResponse()
    answer.CopyFrom(infer_response([vector(text) for text in found], [1] * len(found)))
    del answer.outputs[1], answer.raw_output_contents[1]
    return answer


@pytest.mark.parametrize(
    "sent",
    [
        {},
        {"inputs": []},
        {"inputs": ["a"]},
        {"inputs": [{"name": "input_text", "datatype": "FP32", "data": [1]}]},
        {"inputs": [{"name": "input_text", "datatype": "BYTES"}]},
    ],
)
async def test_litellms_bad_input_is_one_clear_line(serving, dispatcher, sent):
    answer = await serving.post("/triton/embeddings", json=sent)
    assert answer.status == 400
    assert "input_text" in answer.body["error"]
    assert not dispatcher.requests
