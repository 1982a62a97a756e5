"""Arctic Inference's API over a dispatcher, on a real grpc.aio server, called like its clients do."""

import asyncio
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import grpc
import grpc.aio
import numpy as np
import pytest
from tests.fakes.data_plane import data_plane
from tests.fakes.triton import infer_response, texts, vector
from tritonclient.grpc import service_pb2

from tritonembed_manager.router.apis import arctic_pb
from tritonembed_manager.router.apis.arctic import SERVICE, Aborts, add_arctic
from tritonembed_manager.router.apis.arctic_pb import arctic_inference_pb2 as arctic
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.interfaces import DispatchError, ServerState, ServerView
from tritonembed_protocol.served import ServedModel

MODEL = "a/model"
WORDS = ["one", "two words", "", "zwei Wörter"]


class FakeDispatcher:
    """Answers with the vectors of the texts, or fails, or holds."""

    def __init__(self):
        self.requests = []
        self.calls = []
        self.failure = None
        self.answer = None
        self.released = asyncio.Event()
        self.released.set()
        self.inside = asyncio.Semaphore(0)
        self.cancelled = 0
        self.refusals = []
        self.views = [server_view("a", replicas=2), server_view("b", ServerState.UNHEALTHY, replicas=3)]

    def refused(self, code):
        self.refusals.append(code)

    async def infer(self, request, *, timeout, metadata, caller):
        self.requests.append(decoded := service_pb2.ModelInferRequest.FromString(request))
        self.calls.append(SimpleNamespace(timeout=timeout, metadata=dict(metadata)))
        self.inside.release()
        try:
            await self.released.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.failure:
            raise self.failure
        if self.answer is not None:
            return self.answer
        found = texts(decoded)
        return infer_response([vector(text) for text in found], [1] * len(found)).SerializeToString()

    def servers(self):
        return self.views

    def serving(self, model=""):
        return [view.id for view in self.views if view.state is ServerState.READY]


def server_view(name, state=ServerState.READY, replicas=1):
    return ServerView(name, 0, "127.0.0.1:1", None, None, state, True, replicas=replicas)


class Client:
    def __init__(self, channel):
        def method(name, request, response):
            return channel.unary_unary(f"/{SERVICE}/{name}", request.SerializeToString, response.FromString)

        self.Encode = method("Encode", arctic.EncodeRequest, arctic.EncodeResponse)
        self.Abort = method("Abort", arctic.AbortRequest, arctic.AbortResponse)
        self.GetReplicaInfo = method("GetReplicaInfo", arctic.ReplicaInfoRequest, arctic.ReplicaInfoResponse)
        self.HealthCheck = method("HealthCheck", arctic.HealthCheckRequest, arctic.HealthCheckResponse)

    def encode(self, *prompts, n_prompts=None, timeout=None, **fields):
        count = len(prompts) if n_prompts is None else n_prompts
        return self.Encode(arctic.EncodeRequest(prompts=prompts, n_prompts=count, **fields), timeout=timeout)

    async def abort(self, request_id):
        return await self.Abort(arctic.AbortRequest(request_id=request_id))


@asynccontextmanager
async def serving(dispatcher, is_serving=lambda: True, aborts=None, names=None):
    server = grpc.aio.server()
    add_arctic(server, dispatcher, names or ServedNames((MODEL,)), is_serving, aborts)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Client(channel)
    await server.stop(None)


@pytest.fixture
async def dispatcher():
    return FakeDispatcher()


@pytest.fixture
async def client(dispatcher):
    async with serving(dispatcher) as client:
        yield client


@pytest.mark.parametrize("count", [1, 3, 300])
async def test_vectors_come_back_bit_for_bit_in_order(client, count):
    prompts = [f"text {number}" for number in range(count)]
    response = await client.encode(*prompts, request_id="r", model_name=MODEL)
    assert (response.request_id, response.n_prompts, response.embedding_dim, response.error) == ("r", count, 8, "")
    assert list(response.embedding_bytes_fp32) == [vector(prompt.encode()).tobytes() for prompt in prompts]


@pytest.mark.parametrize("dimensions", [1, 31, 32, 4096])
async def test_vectors_of_any_size(client, dispatcher, dimensions):
    rows = np.random.default_rng(0).standard_normal((2, dimensions)).astype("<f4")
    dispatcher.answer = infer_response(list(rows), [1, 1]).SerializeToString()
    response = await client.encode("one", "two")
    assert response.embedding_dim == dimensions
    assert [np.frombuffer(row, "<f4").tolist() for row in response.embedding_bytes_fp32] == rows.tolist()


async def test_texts_are_sent_to_the_ensemble(client, dispatcher):
    await client.encode(*WORDS, request_id="mine")
    [request] = dispatcher.requests
    assert (request.model_name, request.id) == ("embedding", "mine")
    assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in request.inputs] == [
        ("text", "BYTES", [4, 1])
    ]
    assert [output.name for output in request.outputs] == ["embedding"]
    assert texts(request) == [word.encode() for word in WORDS]


async def test_token_ids_are_sent_to_the_embedder_and_count_instead_of_prompts(client, dispatcher):
    ids = [np.array(numbers, "<i4").tobytes() for numbers in ([101, 102], [101, 7, 102])]
    response = await client.encode("ignored", n_prompts=2, token_id_bytes_i32=ids)
    [request] = dispatcher.requests
    assert request.model_name == "embedder"
    assert [(tensor.name, list(tensor.shape)) for tensor in request.inputs] == [("token_ids", [2, 1])]
    assert texts(request) == ids
    assert response.n_prompts == 2


async def test_an_id_is_made_up_for_a_request_without_one(client):
    one, two = await client.encode("a"), await client.encode("a")
    assert one.request_id
    assert one.request_id != two.request_id


async def test_deadline_and_metadata_are_passed_on(client, dispatcher):
    request = arctic.EncodeRequest(n_prompts=1, prompts=["a"])
    await client.Encode(request, timeout=50, metadata=(("traceparent", "00-1-2-03"),))
    await client.Encode(request)
    timed, untimed = dispatcher.calls
    assert 40 < timed.timeout < 51
    assert timed.metadata["traceparent"] == "00-1-2-03"
    assert untimed.timeout is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompts": ["a"], "n_prompts": 2}, "n_prompts is 2, and prompts has 1"),
        ({"prompts": ["a"]}, "n_prompts is 0, and prompts has 1"),
        ({"prompts": ["a"], "n_prompts": -1}, "n_prompts is -1"),
        ({"token_id_bytes_i32": [b"abcd"], "n_prompts": 2}, "n_prompts is 2, and token_id_bytes_i32 has 1"),
        ({}, "there are no prompts"),
        ({"prompts": ["a"], "n_prompts": 1, "model_name": "another"}, "model_name"),
    ],
)
async def test_a_bad_request_is_answered_ok_with_the_reason(client, dispatcher, fields, words):
    response = await client.Encode(arctic.EncodeRequest(request_id="r", **fields))
    assert response.request_id == "r"
    assert words in response.error
    assert not response.embedding_bytes_fp32
    assert not dispatcher.requests
    assert dispatcher.refusals == [grpc.StatusCode.INVALID_ARGUMENT]


async def test_text_that_is_not_utf_8_is_a_bad_request(dispatcher):
    async with serving(dispatcher) as client:
        broken = SimpleNamespace(SerializeToString=lambda: b"\x10\x01\x1a\x01\xff")
        client.Encode._request_serializer = lambda message: message.SerializeToString()
        response = await client.Encode(broken)
    assert "UTF-8" in response.error


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "NOT_FOUND"])
async def test_a_servers_error_about_a_request_is_in_the_answer(client, dispatcher, code):
    dispatcher.failure = DispatchError(grpc.StatusCode[code], "text: sentence 0 is too long")
    response = await client.encode("a")
    assert response.error == "text: sentence 0 is too long"


@pytest.mark.parametrize("code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "INTERNAL"])
async def test_an_error_that_is_not_the_requests_fault_is_a_status(client, dispatcher, code):
    dispatcher.failure = DispatchError(grpc.StatusCode[code], "why", retry_after=0.25)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.encode("a")
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode[code], "why")
    assert dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"] == "250"


@pytest.mark.parametrize(
    "answer",
    [
        b"\xff",
        service_pb2.ModelInferResponse().SerializeToString(),
        infer_response([vector(b"a")] * 3, [1] * 3).SerializeToString(),
        infer_response([vector(b"a"), vector(b"b")[:4]], [1, 1]).SerializeToString(),
    ],
    ids=["garbage", "empty", "too many", "sizes differ"],
)
async def test_an_answer_without_the_vectors_is_internal(client, dispatcher, answer):
    dispatcher.answer = answer
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.encode("one", "two")
    assert caught.value.code() is grpc.StatusCode.INTERNAL


async def test_a_model_without_dense_vectors_is_answered_ok_with_the_reason(client, dispatcher):
    dispatcher.answer = infer_response([vector(b"a")[:0]] * 2, [1, 1]).SerializeToString()
    response = await client.encode("one", "two")
    assert response.error == "the model gives no dense vectors, and this API has no others"
    assert dispatcher.refusals == [grpc.StatusCode.INVALID_ARGUMENT]


async def test_a_model_that_scores_is_refused(dispatcher):
    ranker = ServedNames(("ranker",), served=ServedModel("ranker", "score"))
    async with serving(dispatcher, names=ServedNames((MODEL,), more=(ranker,))) as client:
        response = await client.encode("one", model_name="ranker")
    assert response.error == "model_name: ranker scores pairs of a query and a text; it does not embed"
    assert not dispatcher.requests


async def held(client, dispatcher, *ids):
    """Calls that the dispatcher holds."""
    dispatcher.released.clear()
    calls = [client.encode("a", request_id=id) for id in ids]
    for _ in calls:
        await dispatcher.inside.acquire()
    return calls


async def test_abort_ends_the_wait_of_that_request_alone(client, dispatcher):
    first, second, other = await held(client, dispatcher, "mine", "mine", "other")
    answer = await client.abort("mine")
    assert answer.success
    assert [(await call).error for call in (first, second)] == ["aborted", "aborted"]
    assert dispatcher.cancelled == 2
    assert not other.done()
    dispatcher.released.set()
    assert not (await other).error
    assert not (await client.abort("mine")).success


async def test_abort_of_what_is_not_in_flight(client):
    unknown, empty = await client.abort("unknown"), await client.abort("")
    assert not unknown.success
    assert "no request" in unknown.message
    assert "empty" in empty.message


async def test_nothing_is_kept_of_a_request_however_it_ended(dispatcher):
    aborts = Aborts()
    async with serving(dispatcher, aborts=aborts) as client:
        await client.encode("a", request_id="answered")
        dispatcher.failure = DispatchError(grpc.StatusCode.UNAVAILABLE, "why")
        with pytest.raises(grpc.aio.AioRpcError):
            await client.encode("a", request_id="failed")
        await dispatcher.inside.acquire()
        await dispatcher.inside.acquire()
        [gone] = await held(client, dispatcher, "cancelled")
        assert len(aborts) == 1
        gone.cancel()
        while dispatcher.cancelled == 0:
            await asyncio.sleep(0)
        [_call] = await held(client, dispatcher, "aborted")
        await client.abort("aborted")
    assert len(aborts) == 0


async def test_abort_frees_the_place_while_triton_still_computes():
    async with data_plane(1, max_in_flight=1) as plane, serving(plane.dispatcher) as client:
        [fake] = plane.fakes
        fake.hang()
        call = client.encode("a", request_id="mine")
        await fake.wait_inside(1)
        assert not plane.is_idle()
        assert (await client.abort("mine")).success
        assert (await call).error == "aborted"
        assert plane.is_idle()
        fake.release()
        assert not (await client.encode("b")).error


def connect(count):
    """The aborts of `count` workers. As through the parent, each line is sent to all of them."""
    lines = asyncio.Queue()
    aborts = [Aborts(lines.put_nowait, count - 1) for _ in range(count)]

    async def pass_on():
        while True:
            line = await lines.get()
            for one in aborts:
                one.receive(line)

    return aborts, asyncio.ensure_future(pass_on())


async def test_abort_reaches_the_other_workers(dispatcher):
    aborts, parent = connect(3)
    async with serving(dispatcher, aborts=aborts[0]) as one, serving(dispatcher, aborts=aborts[2]) as another:
        [call] = await held(one, dispatcher, "mine")
        assert (await another.abort("mine")).success
        assert (await call).error == "aborted"
        assert not (await another.abort("mine")).success
    parent.cancel()


async def test_the_wait_for_a_worker_that_does_not_answer_is_short(monkeypatch):
    monkeypatch.setattr("tritonembed_manager.router.apis.arctic._PATIENCE_S", 0.01)
    aborts = Aborts(lambda line: None, others=1)
    assert not await aborts.abort_everywhere("mine")


async def test_replica_info_lists_every_replica(client):
    info = await client.GetReplicaInfo(arctic.ReplicaInfoRequest())
    assert (info.n_replicas, info.n_healthy_replicas) == (5, 2)
    assert [replica.ready for replica in info.replica_infos] == [True] * 2 + [False] * 3
    assert {(replica.model_name, replica.task) for replica in info.replica_infos} == {(MODEL, "embed")}


async def test_replica_info_names_the_task_of_each_model(dispatcher):
    ranker = ServedNames(("ranker",), served=ServedModel("ranker", "score"))
    dispatcher.views[1] = replace(dispatcher.views[1], ensemble="ranker")
    async with serving(dispatcher, names=ServedNames((MODEL,), more=(ranker,))) as client:
        info = await client.GetReplicaInfo(arctic.ReplicaInfoRequest())
    found = {(replica.model_name, replica.task) for replica in info.replica_infos}
    assert found == {(MODEL, "embed"), ("ranker", "score")}
    alone = ServedNames(("ranker",), served=ServedModel("rerank", "score"))
    async with serving(dispatcher, names=alone) as client:
        info = await client.GetReplicaInfo(arctic.ReplicaInfoRequest())
    assert {replica.task for replica in info.replica_infos} == {"score"}


async def test_health_check(dispatcher):
    is_serving = True
    async with serving(dispatcher, lambda: is_serving) as client:
        ask = arctic.HealthCheckRequest()
        healthy = await client.HealthCheck(ask)
        is_serving = False
        draining = await client.HealthCheck(ask)
        is_serving = True
        dispatcher.views = dispatcher.views[1:]
        down = await client.HealthCheck(ask)
    assert (healthy.healthy, healthy.message) == (True, "")
    assert not draining.healthy
    assert "draining" in draining.message
    assert not down.healthy
    assert "no server is ready" in down.message


def test_the_generated_code_is_that_of_the_definition(tmp_path):
    generated = Path(arctic_pb.__file__).parent
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"--proto_path={Path(__file__).resolve().parents[5] / 'protos'}",
    ]
    subprocess.run(
        [*command, f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", "arctic_inference.proto"], check=True
    )
    for name in ("arctic_inference_pb2.py", "arctic_inference_pb2.pyi"):
        assert (generated / name).read_text() == (tmp_path / name).read_text(), "run `make proto`"
