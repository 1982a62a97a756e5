"""`serve --data-plane envoy`: Envoy carries plain inferences to the servers, and workers answer everything else."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import openai
import pytest
import tritonclient.grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.fakes.threaded import fake_triton, held, start_anew
from tests.fakes.triton import infer_request, vector
from tests.integration.serve import Load, Serve, perf_analyzer, serving
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tritonembed import EmbeddingClient
from tritonembed_perf.server import RunningServer

ENVOY = ("--data-plane=envoy", "--workers=2")
NO_CHECKS = ("--health-interval=3600", "--health-timeout=60")


@pytest.fixture(scope="module")
def manager(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Envoy and two workers in front of the session's server. log: Envoy's access log."""
    log = tmp_path_factory.mktemp("envoy") / "access.log"
    limits = ("--envoy-max-bytes=100000", f"--envoy-access-log={log}")
    with serving("--server", f"{server.target}/{server.http_port}/{server.metrics_port}", *ENVOY, *limits) as started:
        yield started


def infer(target: str, request: service_pb2.ModelInferRequest, timeout: float = 60) -> Any:
    """The answer, or the status and the message of an error."""
    with grpc.insecure_channel(target) as channel:
        try:
            return service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=timeout)
        except grpc.RpcError as error:
            return error.code(), error.details()


def envoy_counts(manager: Serve) -> dict[str, int]:
    """Requests that Envoy sent to each cluster, from the manager's metrics."""
    metrics = httpx.get(f"http://127.0.0.1:{manager.http_port}/metrics", timeout=30).text
    found = {}
    for line in metrics.splitlines():
        if line.startswith("envoy_cluster_upstream_rq_total{"):
            found[line.partition('envoy_cluster_name="')[2].partition('"')[0]] = int(line.rpartition(" ")[2])
    return found


def test_every_api_answers_and_plain_inferences_go_to_the_server(manager: Serve, server: RunningServer) -> None:
    texts = ["a sentence", "another one"]
    with EmbeddingClient(server.target) as direct, EmbeddingClient(manager.target) as client:
        expected = direct.embed(texts).embeddings
        before = envoy_counts(manager)
        result = client.embed(texts)
        np.testing.assert_array_equal(result.embeddings, expected)
        after = envoy_counts(manager)
        assert after["servers"] == before.get("servers", 0) + 1
        assert after.get("workers", 0) == before.get("workers", 0)
        assert result.embedding_space == direct.info().embedding_space
        assert result.embedding_space == direct.embed(texts).embedding_space
        # Above --envoy-max-bytes.
        np.testing.assert_array_equal(client.embed([*texts, "word " * 30_000]).embeddings[:2], expected)
        assert envoy_counts(manager)["workers"] == after.get("workers", 0) + 1
    with tritonclient.grpc.InferenceServerClient(manager.target) as client:
        assert client.is_server_ready()
        assert client.get_inference_statistics("embedding").model_stats[0].inference_count > 0
    with openai.OpenAI(base_url=f"http://127.0.0.1:{manager.http_port}/v1", api_key="none") as client:
        found = client.embeddings.create(model="embedding", input=texts).data
    np.testing.assert_allclose([item.embedding for item in found], expected, atol=1e-6)
    with grpc.insecure_channel(manager.target) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("way", [["-i", "grpc", "--async"], ["-i", "http"]], ids=["grpc", "http"])
def test_perf_analyzer_can_measure_through_envoy(manager: Serve, tmp_path: Path, way: list[str]) -> None:
    before = envoy_counts(manager).get("servers", 0)
    row = perf_analyzer(manager, tmp_path, way)
    assert float(row["Inferences/Second"]) > 0
    assert float(row["Server Compute Infer"]) > 0
    assert "http" in way or envoy_counts(manager)["servers"] > before


def test_what_would_kill_the_server_never_reaches_it(manager: Serve, server: RunningServer) -> None:
    request = infer_request(b"a text")
    request.outputs.add(name="embedding").parameters["classification"].int64_param = 3
    code, message = infer(manager.target, request)
    assert (code, message.partition(":")[0]) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "an output has the parameter classification",
    )
    spoiled = infer_request(b"a text")
    spoiled.raw_input_contents[0] = spoiled.raw_input_contents[0][:-1]
    assert infer(manager.target, spoiled)[0] is grpc.StatusCode.INVALID_ARGUMENT
    with EmbeddingClient(server.target) as client:
        client.embed(["a sentence"])


def test_envoy_is_started_again_and_its_log_has_no_text(manager: Serve) -> None:
    with EmbeddingClient(manager.target) as client:
        client.embed(["confidential"], metadata={"x-key": "secret"})
    [pid] = [process.pid for process in manager.family() if process.name == "envoy"]
    os.kill(pid, signal.SIGTERM)
    manager.until(lambda: manager.status().get("envoy", {}).get("restarts") == 1)
    manager.until(manager.serves)
    options = Path(f"/proc/{manager.process.pid}/cmdline").read_text().split("\0")
    path = next(option.partition("=")[2] for option in options if option.startswith("--envoy-access-log"))
    log = Path(path).read_text()
    lines = [json.loads(line) for line in log.splitlines()]
    infers = [line for line in lines if line["path"] == "/inference.GRPCInferenceService/ModelInfer"]
    assert infers
    assert {"status", "grpc_status", "duration_ms", "bytes_received", "server", "attempts"} <= set(infers[0])
    for text in ("confidential", "secret"):
        assert text not in log + manager.log()


def test_envoys_administration_has_no_port(manager: Serve) -> None:
    pids = {process.pid for process in manager.family() if process.name == "envoy"}
    sockets = {os.readlink(fd) for pid in pids for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()}
    listening = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
            listening.add(int(fields[1].partition(":")[2], 16))
    assert listening == {manager.port, manager.http_port}


def test_a_server_that_breaks_costs_nothing_and_its_requests_go_elsewhere() -> None:
    with (
        fake_triton() as one,
        fake_triton() as other,
        serving("--model=m", "--server", one.address, "--server", other.address, *ENVOY, *NO_CHECKS) as manager,
        Load(manager.target, clients=16) as load,
    ):
        load.answers(100)
        for fake in (one, other):
            start_anew(fake, 0.5)
            load.answers(100)
        # As if its python stub were dead, until the parent's check.
        other.unhealthy_after = 0
        manager.until(lambda: manager.states() == ["ready", "unhealthy"])
        load.answers(100)
        other.unhealthy_after = None
        manager.until(lambda: manager.states() == ["ready", "ready"])
        count = len(other.requests)
        manager.until(lambda: len(other.requests) > count + 20)
    assert load.errors == []


def test_overload_and_deadlines_are_answered_at_once() -> None:
    with (
        fake_triton() as fake,
        serving("--model=m", "--server", fake.address, *ENVOY, *NO_CHECKS, "--max-in-flight=8") as manager,
        ThreadPoolExecutor(32) as pool,
    ):
        request = infer_request(b"a text")
        with held(fake):
            first = [pool.submit(infer, manager.target, request) for _ in range(8)]
            manager.until(lambda: fake.inside == 8)
            more = [pool.submit(infer, manager.target, request) for _ in range(8)]
            for future in more:
                code, message = future.result(60)
                assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert message.startswith("overloaded")
            manager.until(lambda: manager.status()["totals"]["in_flight"] == 8)
        for future in first:
            assert (
                np.frombuffer(future.result(60).raw_output_contents[0][4:], "<f4").tolist()
                == vector(b"a text").tolist()
            )
        with held(fake), grpc.insecure_channel(manager.target) as channel:
            # Without a deadline of its own, the client waits for that of the header.
            call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            with pytest.raises(grpc.RpcError) as caught:
                call(request.SerializeToString(), metadata=[("grpc-timeout", "300m")])
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_without_a_ready_server_requests_wait() -> None:
    with (
        fake_triton() as fake,
        serving("--model=m", "--server", fake.address, *ENVOY, "--health-interval=0.1") as manager,
        ThreadPoolExecutor(1) as pool,
    ):
        down = threading.Thread(target=start_anew, args=(fake, 2.0))
        down.start()
        manager.until(lambda: manager.states() == ["unhealthy"])
        waiting = pool.submit(infer, manager.target, infer_request(b"a text"))
        down.join()
        assert waiting.result(60).model_name == "embedding"
        with grpc.insecure_channel(manager.target) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            _, call = stub.ModelInfer.with_call(infer_request(b"a text"), timeout=60)
        # The fake can't tell its embedding space.
        assert "x-embedding-space" not in dict(call.initial_metadata())


def test_a_drain_answers_what_is_in_flight_and_refuses_the_rest() -> None:
    with (
        fake_triton() as fake,
        serving("--model=m", "--server", fake.address, *ENVOY, *NO_CHECKS) as manager,
        ThreadPoolExecutor(8) as pool,
    ):
        request = infer_request(b"a text")
        # Envoy learns a moment later that the server is READY.
        manager.until(lambda: infer(manager.target, request) and envoy_counts(manager).get("servers"), 30)
        with held(fake):
            flying = [pool.submit(infer, manager.target, request) for _ in range(8)]
            manager.until(lambda: fake.inside == 8, 30)
            manager.process.send_signal(signal.SIGTERM)
            # Until Envoy knows of the drain, a request still goes to the server, and is held.
            manager.until(lambda: infer(manager.target, request, 1)[0] is grpc.StatusCode.UNAVAILABLE, 20)
            # Only Envoy has requests.
            manager.until(lambda: manager.workers() == [], 20)
            assert infer(manager.target, request)[0] is grpc.StatusCode.UNAVAILABLE
            assert not any(future.done() for future in flying)
        assert [future.result(60).model_name for future in flying] == ["embedding"] * 8
        assert manager.process.wait(60) == 0
