"""A worker that serves two models: each request goes to a server of its model, over every API."""

import asyncio
import json

import aiohttp
import grpc
import pytest
from tests.fakes.data_plane import view
from tests.fakes.tenants import key_of, tenant
from tests.fakes.triton import FakeTriton, infer_request, vector
from tests.unit.manager.router.test_worker import running_worker
from tritonclient.grpc import service_pb2

from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.data.quotas import QuotaTable
from tritonembed_manager.router.data.tenants import ModelLimits
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


async def test_a_path_names_the_model_for_clients_that_can_not(two):
    texts = ["some words", "more"]
    wanted = [pytest.approx(vector(text.encode()).tolist()) for text in texts]
    for path in ("/models/bge/embed", "/models/bge/embed/", "/models/org/bge/embed", "/models/bge", "/models/bge/"):
        assert await two.http("POST", path, json={"inputs": texts}) == (200, wanted), path
    azure = "/openai/deployments/bge/embeddings?api-version=2024-10-21"
    for path, more in ((azure, {"model": "whatever"}), ("/openai/v1/embeddings", {"model": "bge"})):
        status, answer = await two.http("POST", path, json={"input": texts, **more})
        assert (status, answer["model"], [item["embedding"] for item in answer["data"]]) == (200, "bge", wanted), path
    tensor = {"name": "input_text", "datatype": "BYTES", "shape": [2], "data": texts}
    status, answer = await two.http("POST", "/models/bge/triton/embeddings", json={"inputs": [tensor]})
    assert (status, answer["outputs"][0]["shape"]) == (200, [2, len(vector(b"more"))])
    assert (len(two.first.requests), len(two.second.requests)) == (0, 8)
    await two.http("POST", "/models/minilm/embed", json={"inputs": texts})
    assert len(two.first.requests) == 1
    assert (await two.http("GET", "/models/bge/info"))[1]["max_input_length"] == 512
    assert [model["id"] for model in (await two.http("GET", "/openai/models"))[1]["data"]] == ["minilm", "bge"]


async def test_a_path_of_an_unknown_model_is_refused_in_the_form_of_its_api(two):
    status, answer = await two.http("POST", "/models/other/embed", json={"inputs": "x"})
    assert (status, list(answer), "no such model" in answer["error"]) == (404, ["error", "error_type"], True)
    assert (await two.http("GET", "/models/other/info"))[0] == 404
    status, answer = await two.http("POST", "/openai/deployments/other/embeddings", json={"input": "x"})
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    status, answer = await two.http("POST", "/models/bge/rerank", json={"query": "x", "texts": ["y"]})
    assert (status, answer["error"]) == (422, "model: bge embeds texts; it does not score pairs")
    tensor = {"name": "input_text", "datatype": "BYTES", "shape": [1], "data": ["x"]}
    status, answer = await two.http("POST", "/models/other/triton/embeddings", json={"inputs": [tensor]})
    assert (status, list(answer)) == (404, ["error"])
    assert two.first.requests == two.second.requests == []


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


async def test_a_flood_of_a_model_without_a_server_leaves_places_for_others(two):
    two.report(second=ServerState.UNLOADED)
    await two.until(1, 0)
    two.worker._pools[1]._max_in_flight = 4
    flood = [asyncio.ensure_future(answer(two.infer("bge"))) for _ in range(4)]
    while two.worker._row.admitted() < 4:
        await two.parent.receive("alive")
    with pytest.raises(grpc.aio.AioRpcError, match="the model has its maximum of requests") as caught:
        await two.infer("bge")
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await two.infer("embedding")
    two.report()
    assert len(await asyncio.gather(*flood)) == 4


async def test_a_tenant_has_limits_for_a_model_beside_its_own_on_every_api():
    table = QuotaTable.create(1, slots=8)
    limits = ModelLimits("a", "org/bge", requests_per_minute=2, slot=1)
    who = tenant("a", requests_per_minute=10, model_limits=(limits,), monitor=True)
    names = ServedNames(("minilm",), more=(BGE,))
    async with (
        FakeTriton() as first,
        FakeTriton() as second,
        running_worker(names=names, tenants=(who,), quota_fd=table.fd) as (worker, parent, _, stub),
    ):
        two = Two(first, second, worker, parent, stub, worker._config.http_port)
        await parent.receive("ready")
        two.report()
        await two.until(1, 1)
        key = {"authorization": f"Bearer {key_of('a')}"}

        async def http(model):
            body = {"input": "a text", "model": model}
            async with (
                aiohttp.ClientSession() as session,
                session.post(f"{two.url}/v1/embeddings", json=body, headers=key) as found,
            ):
                return found.status, found.headers["x-ratelimit-remaining-requests"], await found.text()

        call = stub.ModelInfer(bge_request(), metadata=tuple(key.items()), timeout=60)
        await call
        assert dict(await call.trailing_metadata())["x-ratelimit-limit-requests"] == "2"
        assert (await http("bge"))[:2] == (200, "0")
        status, _, text = await http("bge")
        assert (status, "this tenant's 2 requests per minute for org/bge are used up" in text) == (429, True)
        with pytest.raises(grpc.aio.AioRpcError, match="2 requests per minute for org/bge") as caught:
            await stub.ModelInfer(bge_request(), metadata=tuple(key.items()), timeout=60)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await http("minilm"))[:2] == (200, "7")
        async with aiohttp.ClientSession() as session, session.get(f"{two.url}/metrics", headers=key) as found:
            lines = (await found.text()).splitlines()
        assert 'tritonembed_tenant_model_requests_total{model="org/bge",tenant="a"} 2.0' in lines
        refused = 'tritonembed_tenant_model_refused_requests_total{limit="requests",model="org/bge",tenant="a"} 2.0'
        assert refused in lines
        assert 'tritonembed_tenant_requests_total{tenant="a"} 3.0' in lines


def bge_request():
    request = infer_request(b"a text")
    request.model_name = "bge_embedder"
    return request


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


async def openai(two, status=200):
    """The headers of an answer of OpenAI's API, which has this status."""
    body = {"input": "x", "model": "bge"}
    async with aiohttp.ClientSession() as session, session.post(f"{two.url}/v1/embeddings", json=body) as found:
        assert found.status == status
        return found.headers


async def test_a_request_that_waited_before_its_model_was_unloaded_asks_for_it(two):
    two.second.hang()
    # Larger than what may be at the server: the last of them wait.
    requests = [asyncio.ensure_future(answer(two.infer("bge", b"word " * 30_000))) for _ in range(4)]
    while not two.worker._pools[1].waiting:
        await two.parent.receive("alive")
    two.report(second=ServerState.DRAINING)
    await two.until(1, 0)
    two.second.release()
    assert (await two.parent.receive("wanted"))["model"] == "bge"
    assert not all(one.done() for one in requests)
    two.report(second=ServerState.UNLOADED)
    two.report()
    await asyncio.gather(*requests)


async def test_a_drain_refuses_requests_for_models_that_are_not_in_memory_and_no_others(two):
    two.report(second=ServerState.UNLOADED)
    await two.until(1, 0)
    two.first.hang()
    in_flight = asyncio.ensure_future(answer(two.infer("embedding")))
    await two.first.wait_inside(1)
    waiting = [asyncio.ensure_future(answer(two.infer("bge"))), asyncio.ensure_future(openai(two, 503))]
    await two.parent.receive("wanted")
    while two.worker._row.admitted() < 3:
        await two.parent.receive("alive")
    two.parent.report("drain")
    with pytest.raises(grpc.aio.AioRpcError, match="is draining, and the model is not in memory") as caught:
        await waiting[0]
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await waiting[1]
    assert not in_flight.done()
    two.first.release()
    await in_flight


async def test_a_drain_waits_for_a_model_that_is_being_loaded(two):
    two.report(second=ServerState.UNLOADED)
    await two.until(1, 0)
    waiting = asyncio.ensure_future(answer(two.infer("bge")))
    await two.parent.receive("wanted")
    two.report(second=ServerState.STARTING)
    two.parent.report("drain")
    while not two.worker._admission.draining:
        await two.parent.receive("alive")
    assert not waiting.done()
    two.report()
    await waiting


async def test_a_request_that_its_model_does_not_come_for_in_time_is_refused(two):
    two.report(second=ServerState.UNLOADED)
    await two.until(1, 0)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await two.infer("bge", timeout=0.5)
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert (await two.http("GET", "/v2/models/bge/ready"))[0] == 400
