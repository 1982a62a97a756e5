"""KServe v2 over HTTP, with Triton's own clients and by hand, over a real dispatcher and fake servers."""

import asyncio
import json

import grpc
import numpy as np
import pytest
import tritonclient.http
import tritonclient.http.aio
from tests.fakes.data_plane import data_plane
from tests.fakes.triton import infer_response, vector
from tests.unit.manager.router.apis.http.conftest import running
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from tritonembed_manager.router.interfaces import DispatchError, ServerState

TEXTS = [b"one", "zwei Wörter".encode(), b""]


@pytest.fixture
async def plane():
    async with data_plane(2) as plane:
        yield plane


@pytest.fixture
async def triton(plane):
    """The application over fake Triton servers."""
    async with running(plane.dispatcher) as serving:
        yield serving


@pytest.fixture
async def administered(plane):
    """The application with --admin."""
    async with running(plane.dispatcher, admin=True) as serving:
        yield serving


@pytest.fixture
async def client(triton):
    async with tritonclient.http.aio.InferenceServerClient(triton.base.removeprefix("http://")) as client:
        yield client


def text_input(module, texts, *, binary=True):
    tensor = module.InferInput("text", [len(texts), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text] for text in texts], dtype=np.object_), binary_data=binary)
    return tensor


def request(*texts, outputs=None, parameters=None, **more):
    """A request as JSON."""
    tensor = {"name": "text", "shape": [len(texts), 1], "datatype": "BYTES", "data": list(texts)}
    found = {"inputs": [tensor], **more}
    if outputs is not None:
        found["outputs"] = outputs
    if parameters is not None:
        found["parameters"] = parameters
    return found


BINARY = {"binary_data_output": True}


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
async def test_tritons_asyncio_client_infers(client, plane, binary):
    module = tritonclient.http
    answer = await client.infer("embedding", [text_input(module, TEXTS, binary=binary)], request_id="mine")
    rows = [np.frombuffer(row, "<f4") for row in answer.as_numpy("embedding").reshape(-1)]
    assert (np.stack(rows) == np.stack([vector(text) for text in TEXTS])).all()
    assert answer.as_numpy("num_tokens").reshape(-1).tolist() == [1, 2, 0]
    [seen] = [found for fake in plane.fakes for found in fake.requests]
    assert (seen.id, seen.model_name, seen.model_version) == ("mine", "embedding", "")


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
async def test_tritons_blocking_client_infers(triton, plane, compression):
    def infer():
        module = tritonclient.http
        with module.InferenceServerClient(triton.base.removeprefix("http://")) as client:
            outputs = [module.InferRequestedOutput("embedding"), module.InferRequestedOutput("num_tokens", False)]
            return client.infer(
                "embedding",
                [text_input(module, TEXTS)],
                model_version="1",
                outputs=outputs,
                timeout=9_000_000,
                priority=1,
                parameters={"truncate": "NONE", "normalize": False, "dimensions": 4},
                request_compression_algorithm=compression,
                response_compression_algorithm=compression,
            )

    answer = await asyncio.to_thread(infer)
    assert len(answer.as_numpy("embedding").reshape(-1)) == 3
    assert answer.as_numpy("num_tokens").reshape(-1).tolist() == [1, 2, 0]
    [seen] = [found for fake in plane.fakes for found in fake.requests]
    assert seen.model_version == "1"
    assert seen.parameters["truncate"].string_param == "NONE"
    assert seen.parameters["normalize"].WhichOneof("parameter_choice") == "bool_param"
    assert seen.parameters["dimensions"].int64_param == 4
    assert 0 < seen.parameters["timeout"].int64_param <= 9_000_000
    assert [output.name for output in seen.outputs] == ["embedding", "num_tokens"]


async def test_clients_can_query_servers_and_models(client, plane):
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert await client.is_model_ready("embedding")
    assert not await client.is_model_ready("another")
    assert (await client.get_server_metadata())["name"] == "triton"
    metadata = await client.get_model_metadata("embedding", "1")
    assert metadata["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1, 1]}]
    config = await client.get_model_config("embedding")
    assert (config["name"], config["max_batch_size"]) == ("embedding", 1024)
    assert config["parameters"] == {"dimensions": {"string_value": "8"}}
    assert await client.get_model_repository_index() == [{"name": "embedding", "version": "1", "state": "READY"}]
    with pytest.raises(InferenceServerException, match="is not found"):
        await client.get_model_metadata("another")


async def test_statistics_are_added_up_over_the_servers(client, plane):
    for number, fake in enumerate(plane.fakes, 1):
        stats = fake.statistics.model_stats.add(name="embedding", version="1", inference_count=number)
        stats.inference_stats.success.count = 10 * number
    found = await client.get_inference_statistics("embedding")
    [stats] = found["model_stats"]
    assert stats["inference_count"] == 3
    assert stats["inference_stats"]["success"] == {"count": 30, "ns": 0}
    assert stats["inference_stats"]["fail"] == {"count": 0, "ns": 0}


async def test_changes_are_sent_to_all_servers(administered, plane):
    async with tritonclient.http.aio.InferenceServerClient(administered.base.removeprefix("http://")) as client:
        await change(client)
    expected = ["RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting", "LogSettings"]
    assert [fake.calls for fake in plane.fakes] == [expected, expected]


async def change(client):
    """Sends every kind of change through Triton's asyncio client."""
    await client.load_model("embedding")
    await client.unload_model("embedding")
    await client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"], "trace_rate": "5", "trace_file": None})
    await client.update_log_settings({"log_verbose_level": 1})


async def test_tritons_blocking_client_changes_servers_too(administered, plane):
    def change():
        with tritonclient.http.InferenceServerClient(administered.base.removeprefix("http://")) as client:
            client.load_model("embedding")
            client.update_log_settings({"log_verbose_level": 1})

    await asyncio.to_thread(change)
    assert [fake.calls for fake in plane.fakes] == [["RepositoryModelLoad", "LogSettings"]] * 2


async def test_one_dead_server_of_two_does_not_prevent_reading(administered, plane):
    triton = administered
    for fake in plane.fakes:
        fake.statistics.model_stats.add(name="embedding", version="1", inference_count=7)
    await plane.fakes[0].crash()
    for path in ("/v2/logging", "/v2/trace/setting", "/v2/models/embedding/trace/setting"):
        assert (await triton.get(path)).status == 200
    stats = await triton.get("/v2/models/embedding/stats")
    assert stats.status == 200
    assert stats.body["model_stats"][0]["inference_count"] == 7
    # A change has to reach all servers, so it fails.
    assert (await triton.post("/v2/logging", json={"log_verbose_level": 1})).status == 503


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/systemsharedmemory/status"),
        ("POST", "/v2/systemsharedmemory/region/a/register"),
        ("POST", "/v2/cudasharedmemory/unregister"),
    ],
)
async def test_shared_memory_is_refused_with_the_reason(triton, method, path):
    answer = await triton._ask(method, path)
    assert answer.status == 501
    assert "belongs to one server" in answer.body["error"]


async def test_ready_is_400_if_nothing_serves_as_in_triton(triton, plane):
    plane.report(0, ServerState.STARTING)
    plane.report(1, ServerState.FAILED)
    assert (await triton.get("/v2/health/live")).status == 200
    assert (await triton.get("/v2/health/ready")).status == 400
    assert (await triton.get("/v2/models/embedding/ready")).status == 400


@pytest.mark.parametrize("outputs", [None, [{"name": "embedding"}], [{"name": "num_tokens"}, {"name": "embedding"}]])
@pytest.mark.parametrize("model", ["embedding", "embedder"])
async def test_vectors_as_json_are_refused_before_a_server_gets_the_request(triton, plane, outputs, model):
    answer = await triton.post(f"/v2/models/{model}/infer", json=request("a", outputs=outputs))
    assert answer.status == 400
    assert "output embedding: its bytes are not text" in answer.body["error"]
    assert "binary_data" in answer.body["error"]
    assert not any(fake.requests for fake in plane.fakes)


async def test_an_unknown_models_bytes_are_refused_if_they_are_not_text(serving, dispatcher):
    dispatcher.answer = lambda request: infer_response([np.array([-1.5], "<f4")], [1])
    answer = await serving.post("/v2/models/other/infer", json=request("a"))
    assert answer.status == 400
    assert "output embedding" in answer.body["error"]


async def test_json_out_holds_numbers_and_text(serving, dispatcher):
    def answer(request):
        response = service_pb2.ModelInferResponse(model_name="other", model_version="3", id=request.id)
        response.outputs.add(name="words", datatype="BYTES", shape=[2])
        response.outputs.add(name="numbers", datatype="FP32", shape=[1, 2])
        response.outputs.add(name="flags", datatype="BOOL", shape=[2])
        response.parameters["last"].bool_param = True
        words = b"\x02\0\0\0ab\x03\0\0\0\xe2\x82\xac"
        response.raw_output_contents.extend([words, np.array([1.5, -2], "<f4").tobytes(), b"\x01\x00"])
        return response

    dispatcher.answer = answer
    answer = await serving.post("/v2/models/other/versions/3/infer", json=request("a", id="x"))
    assert answer.body == {
        "model_name": "other",
        "model_version": "3",
        "id": "x",
        "parameters": {"last": True},
        "outputs": [
            {"name": "words", "datatype": "BYTES", "shape": [2], "data": ["ab", "€"]},
            {"name": "numbers", "datatype": "FP32", "shape": [1, 2], "data": [1.5, -2.0]},
            {"name": "flags", "datatype": "BOOL", "shape": [2], "data": [True, False]},
        ],
    }


@pytest.mark.parametrize(
    ("datatype", "data", "dtype"),
    [
        ("INT8", [[1, -2], [3, 4]], "<i1"),
        ("UINT64", [1, 2**64 - 1, 0, 5], "<u8"),
        ("INT64", [-(2**63), 2**63 - 1, 0, 5], "<i8"),
        ("FP32", [1, 2.5, 3, 4], "<f4"),
        ("FP16", [1, 2.5, 3, 4], "<f2"),
        ("BOOL", [True, False, True, True], "?"),
    ],
)
async def test_json_in_becomes_raw_bytes(serving, dispatcher, datatype, data, dtype):
    tensor = {"name": "x", "shape": [2, 2], "datatype": datatype, "data": data}
    answer = await serving.post("/v2/models/other/infer", json={"inputs": [tensor], "parameters": BINARY})
    seen = dispatcher.requests[0]
    assert seen.raw_input_contents[0] == np.array(data, dtype).tobytes()
    assert answer.status in (200, 500)  # the fake server reads only texts


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "inputs must be a list of objects"),
        ({"inputs": [1]}, "inputs must be a list of objects"),
        ({"inputs": [{}]}, "lacks its name"),
        ({"inputs": [{"name": "text", "shape": [1, 1]}]}, "lacks its datatype"),
        ({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}]}, "shape must be a list of sizes"),
        ({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [True]}]}, "shape must be a list of sizes"),
        ({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1, 1]}]}, "neither data nor binary_data_size"),
        ({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2, 1], "data": ["secret"]}]}, "has 1 elements"),
        ({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": [1]}]}, "text[0] is int"),
        ({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": "secret"}]}, "data is not a list"),
        ({"inputs": [{"name": "x", "datatype": "INT8", "shape": [1], "data": 3}]}, "data is not a list"),
        ({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["secret\ud800"]}]}, "lone surrogate"),
        (
            {"inputs": [{"name": "text", "datatype": "secret", "shape": [1], "data": [1]}]},
            "JSON data can't have this datatype",
        ),
        ({"inputs": [{"name": "x", "datatype": "INT8", "shape": [1], "data": [300]}]}, "does not fit into INT8"),
        ({"inputs": [{"name": "x", "datatype": "INT8", "shape": [1], "data": [2**70]}]}, "INT8"),
        ({"inputs": [{"name": "x", "datatype": "INT8", "shape": [1], "data": [1.5]}]}, "not INT8"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [10**400]}]}, "does not fit into FP32"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": ["secret"]}]}, "not FP32"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [None]}]}, "not FP32"),
        (request("a", id=[]), "id must be a string"),
        (request("a", id="\ud800"), "lone surrogate"),
        (request("a", parameters=[]), "parameters must be an object"),
        (request("a", parameters={"secret": []}), "must be a string, a number or a bool"),
        (request("a", parameters={"binary_data_output": 1}), "binary_data_output must be true or false"),
        (request("a", outputs={}), "outputs must be a list of objects"),
        (request("a", outputs=[{"name": 1}]), "an output lacks its name"),
    ],
)
async def test_a_bad_request_gets_a_one_line_error(serving, dispatcher, body, words):
    answer = await serving.post("/v2/models/embedding/infer", data=json.dumps(body))
    assert answer.status == 400
    assert words in answer.body["error"]
    assert "secret" not in answer.body["error"]
    assert "\n" not in answer.body["error"]
    assert not dispatcher.requests


@pytest.mark.parametrize(
    ("length", "size", "words"),
    [
        ("a", 8, "must be a number"),
        ("-1", 8, "must be a number"),
        ("99999", 8, "larger than the body"),
        (None, 9, "binary_data_size does not match the body"),
        (None, 7, "1 bytes of the body belong to no input"),
        (None, -1, "binary_data_size does not match the body"),
    ],
)
async def test_wrong_lengths_of_binary_data(serving, length, size, words):
    tensor = {"name": "text", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": size}}
    header = json.dumps({"inputs": [tensor], "parameters": BINARY}).encode()
    headers = {"Inference-Header-Content-Length": length or str(len(header))}
    answer = await serving.post("/v2/models/embedding/infer", data=header + b"\x04\0\0\0abcd", headers=headers)
    assert answer.status == 400
    assert words in answer.body["error"]


async def test_shared_memory_in_a_request_is_refused(serving):
    found = request("a")
    found["inputs"][0]["parameters"] = {"shared_memory_region": "secret"}
    assert (await serving.post("/v2/models/embedding/infer", json=found)).status == 501
    found = request("a", outputs=[{"name": "embedding", "parameters": {"shared_memory_region": "secret"}}])
    assert (await serving.post("/v2/models/embedding/infer", json=found)).status == 501


async def test_a_raw_body_is_one_text(triton, plane):
    headers = {"Inference-Header-Content-Length": "0"}
    answer = await triton.post("/v2/models/embedding/infer", data=b"one text", headers=headers)
    assert answer.status == 200
    end = int(answer.headers["Inference-Header-Content-Length"])
    [embedding, tokens] = json.loads(answer.raw[:end])["outputs"]
    assert embedding["parameters"]["binary_data_size"] == 4 + 32
    assert answer.raw[end + 4 : end + 36] == vector(b"one text").tobytes()
    assert tokens["parameters"]["binary_data_size"] == 4


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, 400),
        (grpc.StatusCode.NOT_FOUND, 404),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 429),
        (grpc.StatusCode.UNAVAILABLE, 503),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 504),
        (grpc.StatusCode.UNIMPLEMENTED, 501),
        (grpc.StatusCode.INTERNAL, 500),
    ],
)
async def test_codes(serving, dispatcher, code, status):
    dispatcher.failure = DispatchError(code, "a reason", 3.2)
    answer = await serving.post("/v2/models/embedding/infer", json=request("a", parameters=BINARY))
    assert (answer.status, answer.body) == (status, {"error": "a reason"})
    assert answer.headers["Retry-After"] == "4"


async def test_clients_do_not_notice_a_server_that_breaks(client, plane):
    await plane.fakes[0].crash()
    answer = await client.infer("embedding", [text_input(tritonclient.http, [b"a"])])
    assert np.frombuffer(answer.as_numpy("embedding")[0, 0], "<f4").tolist() == vector(b"a").tolist()


async def test_the_callers_trace_is_passed_on_to_triton(serving, dispatcher):
    headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "Authorization": "secret"}
    await serving.post("/v2/models/embedding/infer", json=request("a", parameters=BINARY), headers=headers)
    assert dispatcher.metadata == [{"traceparent": headers["traceparent"]}]


async def test_overload_is_reported_at_once_and_a_client_that_goes_away_frees_its_place():
    async with data_plane(1, max_in_flight=1) as plane, running(plane.dispatcher) as serving:
        [fake] = plane.fakes
        fake.hang()
        body = request("a", parameters=BINARY)
        holding = asyncio.ensure_future(serving.post("/v2/models/embedding/infer", json=body))
        await fake.wait_inside(1)
        answer = await serving.post("/v1/embeddings", json={"input": "a"})
        assert answer.status == 429
        assert int(answer.headers["Retry-After"]) >= 1
        holding.cancel()
        await fake.wait_inside(0)
        fake.release()
        assert (await serving.post("/v1/embeddings", json={"input": "a"})).status == 200


@pytest.mark.parametrize("name", ["%ff", "%ed%a0%80", "a%2Fb", "%00", "%0a", "%C3%B6"])
async def test_strange_names_of_models(triton, name):
    for path in (f"/v2/models/{name}", f"/v1/models/{name}"):
        answer = await triton.get(path)
        assert answer.status in (400, 404), path
        assert answer.body["error"]
