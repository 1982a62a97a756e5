"""Existing clients on the manager's gRPC port: tritonclient, perf_analyzer, health probes, reflection."""

import asyncio
import json
import queue
import urllib.request
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tests.integration.conftest import MAX_MODEL_LEN
from tests.integration.serve import Serve, perf_analyzer
from tritonclient.utils import InferenceServerException

from tritonembed import AsyncEmbeddingClient, EmbeddingClient

TEXTS = ["a sentence of a client", "zwei Wörter", "", "a much longer sentence that says nothing at all " * 5]
MARK = "mxyzptlk"
"""A word in the texts of requests that fail here. It must not be in the manager's log."""
MODELS = {"embedding", "embedding_chunks", "embedder", "tokenizer"}


@pytest.fixture(scope="module")
def manager(two_servers: Serve) -> Serve:
    """Two servers behind two workers, which share the port."""
    return two_servers


@pytest.fixture(scope="module")
def addresses(manager: Serve) -> list[str]:
    """The addresses of the servers' own gRPC ports."""
    return [server["address"] for server in manager.until(manager.status)["servers"]]


@pytest.fixture(scope="module")
def expected(addresses: list[str]) -> Any:
    """The vectors and token counts of a server itself."""
    with EmbeddingClient(addresses[0]) as client:
        return client.embed(TEXTS)


def tensor(texts: list[str]) -> Any:
    """The input `text`."""
    made = tritonclient.grpc.InferInput("text", [len(texts), 1], "BYTES")
    made.set_data_from_numpy(np.array([[text.encode()] for text in texts], dtype=np.object_))
    return made


def check(answer: Any, expected: Any, row: int | None = None) -> None:
    """The answer holds the expected vectors, or the vector of one row."""
    rows = slice(None) if row is None else slice(row, row + 1)
    found = np.stack([np.frombuffer(vector, "<f4") for vector in answer.as_numpy("embedding").reshape(-1)])
    np.testing.assert_allclose(found, expected.embeddings[rows], atol=1e-5)
    assert (answer.as_numpy("num_tokens").reshape(-1) == expected.num_tokens[rows]).all()


def test_tritons_blocking_client_gets_a_servers_vectors(manager: Serve, expected: Any) -> None:
    with tritonclient.grpc.InferenceServerClient(manager.target) as client:
        answer = client.infer("embedding", [tensor(TEXTS)], request_id="mine", client_timeout=30)
        check(answer, expected)
        assert answer.get_response().id == "mine"
        # Request and response are larger than gRPC's usual four megabytes.
        large = client.infer("embedding", [tensor(["word " * 1200] * 1024)], client_timeout=120)
        assert large.as_numpy("num_tokens").sum() == 1024 * MAX_MODEL_LEN
        for wrong, words in (
            ({"parameters": {"truncate": "SIDEWAYS"}}, "truncate"),
            ({"model_version": "7"}, "version"),
            ({"outputs": [tritonclient.grpc.InferRequestedOutput("nothing")]}, "nothing"),
        ):
            with pytest.raises(InferenceServerException, match=words) as refused:
                client.infer("embedding", [tensor([MARK])], client_timeout=30, **wrong)
            assert MARK not in str(refused.value)


def test_tritons_blocking_client_gets_the_same_metadata_as_from_a_server(manager: Serve, addresses: list[str]) -> None:
    with (
        tritonclient.grpc.InferenceServerClient(manager.target) as client,
        tritonclient.grpc.InferenceServerClient(addresses[0]) as server,
    ):
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("embedding")
        assert not client.is_model_ready("another")
        for ask in ("get_server_metadata", "get_log_settings", "get_trace_settings", "get_model_repository_index"):
            assert getattr(client, ask)() == getattr(server, ask)(), ask
        for model in MODELS:
            assert client.get_model_metadata(model) == server.get_model_metadata(model)
            assert client.get_model_config(model) == server.get_model_config(model)
        assert {model.name for model in client.get_model_repository_index().models} == MODELS
        for each in (client, server):
            with pytest.raises(InferenceServerException, match="unknown model: 'another'"):
                each.get_model_metadata("another")
            with pytest.raises(InferenceServerException, match="load / unload is not allowed"):
                each.load_model("embedding")
        with pytest.raises(InferenceServerException, match="this endpoint has several"):
            client.register_system_shared_memory("region", "/region", 64)


def test_a_served_name_is_the_ensembles_on_every_endpoint(manager: Serve, expected: Any) -> None:
    with tritonclient.grpc.InferenceServerClient(manager.target) as client:
        answer = client.infer("minilm", [tensor(TEXTS)], client_timeout=30)
        assert answer.get_response().model_name == "minilm"
        check(answer, expected)
        assert client.is_model_ready("minilm")
        assert client.get_model_metadata("minilm").name == client.get_model_config("minilm").config.name == "minilm"
    with urllib.request.urlopen(f"http://127.0.0.1:{manager.http_port}/v1/models", timeout=10) as listed:
        assert [model["id"] for model in json.load(listed)["data"]] == ["minilm"]
    assert manager.status()["model"] == "minilm"


def test_a_load_may_not_contain_code(manager: Serve) -> None:
    files = {"file:1/model.py": b"raise SystemExit"}
    with tritonclient.grpc.InferenceServerClient(manager.target) as client:
        for brought in ({"config": "{}"}, {"config": "{}", "files": files}):
            with pytest.raises(InferenceServerException, match="may not contain files"):
                client.load_model("tokenizer", **brought)


def test_statistics_are_those_of_all_servers(manager: Serve, addresses: list[str]) -> None:
    def count(target: str) -> int:
        with tritonclient.grpc.InferenceServerClient(target) as client:
            [stats] = client.get_inference_statistics("embedding").model_stats
            return int(stats.inference_count)

    before = count(manager.target)
    with EmbeddingClient(manager.target) as client:
        client.embed([f"sentence {number}" for number in range(40)], batch_size=4)
    assert count(manager.target) == before + 40 == sum(map(count, addresses))


def test_tritons_blocking_client_streams_in_order(manager: Serve, expected: Any) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(manager.target) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        for _ in range(8):
            for text in TEXTS:
                client.async_stream_infer("embedding", [tensor([text])])
        for number in range(8 * len(TEXTS)):
            check(answers.get(timeout=30), expected, number % len(TEXTS))
        client.async_stream_infer("embedding", [tensor([MARK])], parameters={"truncate": "SIDEWAYS"})
        refused = answers.get(timeout=30)
        assert isinstance(refused, InferenceServerException)
        assert "truncate" in str(refused)
        client.stop_stream()


async def test_tritons_asyncio_client_infers_and_streams(manager: Serve, expected: Any) -> None:
    async with tritonclient.grpc.aio.InferenceServerClient(manager.target) as client:
        for answer in await asyncio.gather(*(client.infer("embedding", [tensor(TEXTS)]) for _ in range(32))):
            check(answer, expected)

        async def requests() -> Any:
            for text in TEXTS:
                yield {"model_name": "embedding", "inputs": [tensor([text])]}

        row = 0
        async for answer, error in client.stream_infer(requests()):
            assert error is None
            check(answer, expected, row)
            row += 1
        assert row == len(TEXTS)


async def test_requests_of_mixed_sizes_each_get_their_own_vectors(manager: Serve, addresses: list[str]) -> None:
    """The requests have 1 to 1024 sentences of 1 to 47 words. They are sent at once over several connections."""
    sizes = [1, 1, 2, 700, 3, 1, 64, 1024, 16, 1, 256, 5] * 2
    requests = [
        [" ".join(["word", str(number), *["more"] * ((row * 7 + number) % 46)]) for row in range(size)]
        for number, size in enumerate(sizes)
    ]
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(AsyncEmbeddingClient(manager.target)) for _ in range(4)]
        calls = [clients[number % 4].embed(texts, timeout=120) for number, texts in enumerate(requests)]
        answers = await asyncio.gather(*calls)
        server = await stack.enter_async_context(AsyncEmbeddingClient(addresses[1]))
        for texts, answer in zip(requests, answers, strict=True):
            alone = await server.embed(texts, timeout=120)
            np.testing.assert_allclose(answer.embeddings, alone.embeddings, atol=1e-5)
            assert (answer.num_tokens == alone.num_tokens).all()


@pytest.mark.parametrize(
    "way", [["-i", "grpc", "--async"], ["-i", "grpc", "--streaming"], ["-i", "http"]], ids=["grpc", "stream", "http"]
)
def test_perf_analyzer_can_measure_the_manager(manager: Serve, tmp_path: Path, way: list[str]) -> None:
    row = perf_analyzer(manager, tmp_path, way)
    assert float(row["Inferences/Second"]) > 0
    # perf_analyzer computes this from the difference of two ModelStatistics.
    assert float(row["Server Compute Infer"]) > 0


def test_health_probes_report_serving(manager: Serve) -> None:
    with grpc.insecure_channel(manager.target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "inference.GRPCInferenceService", "arctic_inference.InferenceService"):
            asked = health_pb2.HealthCheckRequest(service=service)
            assert stub.Check(asked, timeout=10).status == health_pb2.HealthCheckResponse.SERVING
            assert next(stub.Watch(asked, timeout=10)).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as unknown:
            stub.Check(health_pb2.HealthCheckRequest(service="another"), timeout=10)
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_is_enough_to_call_every_service(manager: Serve) -> None:
    """Like grpcurl, this uses no .proto file and no generated code."""
    with grpc.insecure_channel(manager.target) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        pool = DescriptorPool(database)
        for name, method, field in (
            ("inference.GRPCInferenceService", "ServerReady", "ready"),
            ("arctic_inference.InferenceService", "HealthCheck", "healthy"),
            ("grpc.health.v1.Health", "Check", "status"),
        ):
            assert name in database.get_services()
            described = pool.FindServiceByName(name).FindMethodByName(method)
            request = GetMessageClass(described.input_type)()
            answer = GetMessageClass(described.output_type)
            call = channel.unary_unary(f"/{name}/{method}", type(request).SerializeToString, answer.FromString)
            assert getattr(call(request, timeout=10), field)


def test_the_log_is_json_and_holds_no_text_of_a_request(manager: Serve) -> None:
    """This is the last test, after all requests of this file."""
    for line in filter(None, manager.log().splitlines()):
        if not line.startswith("READY "):
            assert {"time", "level", "message"} <= json.loads(line).keys()
    assert MARK not in manager.log()
