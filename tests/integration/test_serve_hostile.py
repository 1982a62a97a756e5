"""Requests that would kill a Triton server, or fail other requests of their batch, don't get through the manager."""

import json
import statistics
import struct
import time
from collections.abc import Callable
from typing import Any

import grpc
import httpx
import pytest
from tests.integration.serve import Serve
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tritonembed_protocol.framing import frame

Request = service_pb2.ModelInferRequest
GOOD = frame([b"a good text"])
CUT = struct.pack("<I", 99) + b"abcde"
AT_ONCE = 20


def request(content: bytes = GOOD, *, classes: int | None = None) -> Request:
    made = Request(model_name="embedding", raw_input_contents=[content])
    made.inputs.add(name="text", datatype="BYTES", shape=(1, 1))
    made.outputs.add(name="embedding").parameters["binary_data"].bool_param = True
    if classes is not None:
        made.outputs[0].parameters["classification"].int64_param = classes
    return made


@pytest.fixture(scope="module")
def stub(manager: Serve) -> Any:
    with grpc.insecure_channel(manager.target) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def by_grpc(_: Serve, stub: Any) -> str:
    with pytest.raises(grpc.RpcError) as refusal:
        stub.ModelInfer(request(classes=1), timeout=60)
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    return str(refusal.value.details())


def by_stream(_: Serve, stub: Any) -> str:
    bad, good = stub.ModelStreamInfer(iter([request(classes=1), request()]), timeout=60)
    assert good.infer_response.raw_output_contents
    return str(bad.error_message)


def by_json(manager: Serve, _: Any) -> str:
    outputs = [{"name": "embedding", "parameters": {"classification": 1, "binary_data": True}}]
    inputs = [{"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": ["a text"]}]
    return by_http(manager, json.dumps({"inputs": inputs, "outputs": outputs}).encode(), {})


def by_binary(manager: Serve, _: Any) -> str:
    outputs = [{"name": "embedding", "parameters": {"classification": 1, "binary_data": True}}]
    size = {"binary_data_size": len(GOOD)}
    inputs = [{"name": "text", "datatype": "BYTES", "shape": [1, 1], "parameters": size}]
    head = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
    return by_http(manager, head + GOOD, {"Inference-Header-Content-Length": str(len(head))})


def by_http(manager: Serve, body: bytes, headers: dict[str, str]) -> str:
    address = f"http://127.0.0.1:{manager.http_port}/v2/models/embedding/infer"
    answer = httpx.post(address, content=body, headers=headers, timeout=60)
    assert answer.status_code == 400, answer.text
    return str(answer.json()["error"])


@pytest.mark.parametrize("way", [by_grpc, by_stream, by_json, by_binary])
def test_a_request_that_kills_triton_is_refused_by_every_endpoint(
    manager: Serve, stub: Any, way: Callable[[Serve, Any], str]
) -> None:
    before = manager.tritonservers()
    assert "classification" in way(manager, stub)
    assert stub.ModelInfer(request(), timeout=60).raw_output_contents
    assert manager.tritonservers() == before


def test_a_cut_frame_does_not_harm_other_requests(stub: Any) -> None:
    for _ in range(10):
        good = [stub.ModelInfer.future(request(), timeout=60) for _ in range(AT_ONCE)]
        bad = [stub.ModelInfer.future(request(CUT), timeout=60) for _ in range(3)]
        good += [stub.ModelInfer.future(request(), timeout=60) for _ in range(AT_ONCE)]
        assert {call.code() for call in good} == {grpc.StatusCode.OK}
        assert {call.code() for call in bad} == {grpc.StatusCode.INVALID_ARGUMENT}


def test_metadata_that_cannot_be_passed_on_is_refused_at_once(manager: Serve) -> None:
    address = f"http://127.0.0.1:{manager.http_port}/v2/models/embedding/infer"
    inputs = [{"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": ["a text"]}]
    body = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    seconds = []
    with httpx.Client(timeout=60) as client:
        for _ in range(20):
            began = time.monotonic()
            answer = client.post(address, content=body, headers={b"tracestate": b"caf\xe9"})
            seconds.append(time.monotonic() - began)
            assert answer.status_code == 400, answer.text
            assert "tracestate" in answer.json()["error"]
        assert statistics.median(seconds) < 0.2
        assert client.post(address, content=body).status_code == 200
