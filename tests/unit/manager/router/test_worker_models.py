"""A worker that serves two models: each request goes to a server of its model, over every API."""

import asyncio
import json

import aiohttp
import grpc
import pytest
from tests.fakes.data_plane import view
from tests.fakes.triton import FakeTriton, infer_request, vector
from tests.unit.manager.router.test_worker import running_worker
from tritonclient.grpc import service_pb2

from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.interfaces import ServerState
from tritonembed_protocol.served import ServedModel

BGE = ServedNames(("bge",), ("org/bge",), ServedModel("bge"))


class Two:
    """The worker's two fake servers, one per model, and the ways to it."""

    def __init__(self, first, second, worker, parent, stub, port):
        self.first, self.second = first, second
        self.worker, self.parent, self.stub = worker, parent, stub
        self.url = f"http://127.0.0.1:{port}"

    def report(self, **states):
        views = [
            view("a", 0, self.first.address, states.get("first", ServerState.READY), dimensions=4),
            view("b", 1, self.second.address, states.get("second", ServerState.READY), ensemble="bge", max_length=512),
        ]
        self.parent.send_servers(*views)

    async def http(self, method, path, **more):
        async with aiohttp.ClientSession() as session, session.request(method, self.url + path, **more) as answer:
            body = await answer.read()
            return answer.status, json.loads(body) if body else None

    def infer(self, model, *texts, timeout=60.0):
        request = infer_request(*(texts or (b"a text",)))
        request.model_name = model
        return self.stub.ModelInfer(request, timeout=timeout, wait_for_ready=True)

    async def until(self, first, second):
        """Wait until the worker knows these numbers of servers that get requests."""
        while [len(pool.serving) for pool in self.worker._pools] != [first, second]:
            await self.parent.receive("alive")


@pytest.fixture
async def two():
    async with (
        FakeTriton() as first,
        FakeTriton() as second,
        running_worker(names=ServedNames(("minilm",), more=(BGE,))) as (worker, parent, _, stub),
    ):
        found = Two(first, second, worker, parent, stub, worker._config.http_port)
        await parent.receive("ready")
        found.report()
        await found.until(1, 1)
        yield found


async def test_grpc_requests_go_to_the_server_of_their_model(two):
    for name in ("bge", "org/bge", "embedding", "minilm"):
        assert (await two.infer(name)).model_name in (name, "embedding")
    assert (len(two.first.requests), len(two.second.requests)) == (2, 2)
    assert {request.model_name for request in two.second.requests} == {"bge"}


async def test_openai_requests_go_to_the_server_of_their_model(two):
    for name, answered in (("org/bge", "bge"), ("minilm", "minilm"), ("", "minilm")):
        body = {"input": ["some words"], **({"model": name} if name else {})}
        status, answer = await two.http("POST", "/v1/embeddings", json=body)
        assert (status, answer["model"]) == (200, answered)
        assert answer["data"][0]["embedding"] == pytest.approx(vector(b"some words").tolist())
    assert (len(two.first.requests), len(two.second.requests)) == (2, 1)


async def test_the_list_of_models_has_both_with_what_is_known_of_them(two):
    _, answer = await two.http("GET", "/v1/models")
    known = [{key: one[key] for key in ("id", "task", "dimensions", "max_model_len")} for one in answer["data"]]
    assert known == [
        {"id": "minilm", "task": "embed", "dimensions": 4, "max_model_len": None},
        {"id": "bge", "task": "embed", "dimensions": None, "max_model_len": 512},
    ]
    assert (await two.http("GET", "/v1/models/org/bge"))[1]["id"] == "bge"


async def test_an_unknown_model_is_refused_in_one_line_of_each_api(two):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await two.infer("other")
    assert (caught.value.code(), caught.value.details().count("\n")) == (grpc.StatusCode.NOT_FOUND, 0)
    status, answer = await two.http("POST", "/v1/embeddings", json={"input": "x", "model": "other"})
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": ["x"]}
    status, answer = await two.http("POST", "/v2/models/other/infer", json={"inputs": [tensor]})
    assert (status, list(answer)) == (404, ["error"])
    assert two.first.requests == two.second.requests == []


async def test_a_model_without_a_server_holds_up_no_other(two):
    two.report(second=ServerState.FAILED)
    await two.until(1, 0)
    assert (await two.infer("embedding")).model_name == "embedding"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await two.infer("bge", timeout=0.5)
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert not (await two.stub.ModelReady(service_pb2.ModelReadyRequest(name="bge"))).ready
    assert (await two.stub.ModelReady(service_pb2.ModelReadyRequest(name="embedding"))).ready
    assert (await two.http("GET", "/v2/models/bge/ready"))[0] == 400
    assert (await two.http("GET", "/v2/models/minilm/ready"))[0] == 200
    assert (await two.http("GET", "/v2/health/ready"))[0] == 200


async def test_requests_and_tokens_are_counted_by_model(two):
    await two.infer("bge", b"two words")
    await two.infer("org/bge", b"three more words")
    await two.infer("minilm", b"one")
    two.worker._collect()
    registry = two.worker._metrics._model_tokens
    found = {sample.labels["model"]: sample.value for sample in registry.collect()[0].samples if "total" in sample.name}
    assert found == {"bge": 5.0, "minilm": 1.0}


async def test_a_flood_of_one_model_makes_no_other_refuse(two):
    two.worker._pools[0]._max_in_flight = two.worker._pools[1]._max_in_flight = 4
    two.first.hang()
    two.second.hang()
    flood = [asyncio.ensure_future(answer(two.infer("embedding"))) for _ in range(4)]
    await two.first.wait_inside(4)
    # Larger than what may be at the server: the last of them wait.
    long = b"word " * 30_000
    others = [asyncio.ensure_future(answer(two.infer("bge", long))) for _ in range(4)]
    while two.worker._pools[1].waiting == 0 and not any(one.done() for one in others):
        await two.parent.receive("alive")
    two.first.release()
    two.second.release()
    assert len(await asyncio.gather(*flood, *others)) == 8


async def answer(call):
    return await call


async def test_a_request_for_a_model_that_is_not_in_memory_waits_and_says_so(two):
    two.report(second=ServerState.UNLOADED)
    await two.until(1, 0)
    over_grpc = two.infer("bge")
    first = asyncio.ensure_future(answer(over_grpc))
    assert (await two.parent.receive("wanted"))["model"] == "bge"
    over_http = asyncio.ensure_future(openai(two))
    by_ids = asyncio.ensure_future(
        answer(two.stub.ModelMetadata(service_pb2.ModelMetadataRequest(name="bge_embedder")))
    )
    assert not (await two.stub.ModelReady(service_pb2.ModelReadyRequest(name="bge"))).ready
    two.report(second=ServerState.STARTING)
    await two.until(1, 0)
    two.report()
    await first
    assert float(dict(await over_grpc.trailing_metadata())["x-model-load-seconds"]) > 0
    assert float((await over_http)["x-model-load-seconds"]) > 0
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await by_ids
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND  # the fake has no such model
    later = two.infer("bge")
    await later
    assert "x-model-load-seconds" not in dict(await later.trailing_metadata())
    assert "x-model-load-seconds" not in await openai(two)


async def openai(two):
    """The headers of an answer of OpenAI's API."""
    body = {"input": "x", "model": "bge"}
    async with aiohttp.ClientSession() as session, session.post(f"{two.url}/v1/embeddings", json=body) as found:
        assert found.status == 200
        return found.headers


async def test_a_request_that_its_model_does_not_come_for_in_time_is_refused(two):
    two.report(second=ServerState.UNLOADED)
    await two.until(1, 0)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await two.infer("bge", timeout=0.5)
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert (await two.http("GET", "/v2/models/bge/ready"))[0] == 400
