"""The caller that each endpoint passes to the dispatcher: one per connection."""

import grpc
import grpc.aio
import pytest
from aiohttp import ClientSession
from tests.fakes.triton import OPTIONS, infer_request
from tests.unit.manager.router.apis.http.conftest import MODEL, FakeDispatcher, running

from tritonembed_manager.router.apis.arctic import SERVICE as ARCTIC
from tritonembed_manager.router.apis.arctic import add_arctic
from tritonembed_manager.router.apis.arctic_pb import arctic_inference_pb2 as arctic
from tritonembed_manager.router.apis.kserve_grpc import add_kserve
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.data.upstream import SERVICE as KSERVE

GRPC = [
    (f"/{KSERVE}/ModelInfer", infer_request(b"a").SerializeToString()),
    (f"/{ARCTIC}/Encode", arctic.EncodeRequest(prompts=["a"], n_prompts=1).SerializeToString()),
]
HTTP = [
    ("/v1/embeddings", {"model": MODEL, "input": "a"}),
    (
        "/v2/models/embedding/infer",
        {
            "inputs": [{"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": ["a"]}],
            "parameters": {"binary_data_output": True},
        },
    ),
]


@pytest.mark.parametrize(("method", "message"), GRPC, ids=["kserve", "arctic"])
async def test_each_grpc_connection_is_a_caller(method, message):
    dispatcher = FakeDispatcher()
    server = grpc.aio.server(options=OPTIONS)
    add_kserve(server, dispatcher, lambda: True)
    add_arctic(server, dispatcher, ServedNames((MODEL,)), lambda: True)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    options = [*OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
    for _ in range(2):
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
            for _ in range(2):
                await channel.unary_unary(method)(message)
    await server.stop(None)
    first, again, second, last = dispatcher.callers
    assert first == again != second == last
    assert first.name.startswith("ipv4:127.0.0.1:")
    assert first.weight == 1


@pytest.mark.parametrize(("path", "body"), HTTP, ids=["openai", "kserve"])
async def test_each_http_connection_is_a_caller(path, body):
    dispatcher = FakeDispatcher()
    async with running(dispatcher) as serving:
        for _ in range(2):
            async with ClientSession(serving.base) as session:
                for _ in range(2):
                    async with session.post(path, json=body) as answer:
                        assert answer.status == 200
    first, again, second, last = dispatcher.callers
    assert first == again != second == last
    assert first.name.startswith("http:127.0.0.1:")
