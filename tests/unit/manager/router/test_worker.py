"""A worker between a parent (this test) and fake servers."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager

import aiohttp
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry
from tests.fakes.data_plane import view
from tests.fakes.triton import OPTIONS, FakeTriton, infer_request
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tritonembed_manager.router import worker as program
from tritonembed_manager.router.data.load_table import LoadTable
from tritonembed_manager.router.data.metrics import WorkerMetrics
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.interfaces import ServerState
from tritonembed_manager.router.link import Link, WorkerConfig
from tritonembed_manager.router.worker import EXIT_ALONE, EXIT_CANNOT, EXIT_CUT, EXIT_DRAINED, Worker
from tritonembed_protocol.limits import MAX_REQUEST_BYTES

_SERVING = health_pb2.HealthCheckResponse.SERVING


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def make_config(**changes):
    values = {
        "index": 0,
        "workers": 1,
        "slots": 8,
        "host": "127.0.0.1",
        "port": free_port(),
        "http_port": free_port(),
        "names": ServedNames(("a-model",)),
        "policy": "round_robin",
        "forward_timeout": 120.0,
        "drain_timeout": 60.0,
        "closing_timeout": 3.0,
        "max_in_flight": 100,
        "max_in_flight_per_server": 50,
        "log_format": "json",
        "http_header_timeout": 10.0,
        "receive_timeout": 60.0,
        "min_receive_rate": 4096.0,
        "max_connections_per_peer": 1024,
        "admin": False,
    }
    return WorkerConfig(**{**values, **changes})


class Parent:
    """The parent's end of the socket."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    def report(self, kind, **content):
        self.writer.write(json.dumps({"type": kind, **content}).encode() + b"\n")

    def send_servers(self, *views):
        self.report("servers", servers=[server.to_json() for server in views])

    async def receive(self, kind):
        """The next line of this type."""
        while True:
            line = await asyncio.wait_for(self.reader.readline(), 60)
            assert line, f"the worker hung up before it said {kind}"
            found = json.loads(line)
            if found["type"] == kind:
                return found


@asynccontextmanager
async def running_worker(**changes):
    """A worker in this event loop. Gives it, its parent, its future exit code, and a stub for its gRPC port."""
    config = make_config(**changes)
    table = LoadTable.create(config.workers, config.slots)
    ours, theirs = socket.socketpair()
    parent = Parent(*await asyncio.open_connection(sock=ours))
    link = await Link.open(theirs.detach())
    worker = Worker(config, table, link, metrics=WorkerMetrics(CollectorRegistry()))
    code = asyncio.ensure_future(worker.run())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{config.port}", OPTIONS) as channel:
        yield worker, parent, code, service_pb2_grpc.GRPCInferenceServiceStub(channel)
    parent.writer.close()
    await code
    assert not table.admitted()
    table.close()


def infer(stub, timeout=60):
    return stub.ModelInfer(infer_request(b"a text"), timeout=timeout, wait_for_ready=True)


async def test_a_worker_uses_the_servers_that_the_parent_names():
    async with FakeTriton() as fake, running_worker() as (_, parent, _, stub):
        await parent.receive("ready")
        waiting = asyncio.ensure_future(_answer(infer(stub)))
        parent.send_servers(view("a", 0, fake.address))
        await waiting
        assert len(fake.requests) == 1


async def test_a_worker_counts_and_reports():
    async with FakeTriton() as fake, running_worker() as (_, parent, _, stub):
        parent.send_servers(view("a", 0, fake.address))
        await infer(stub)
        fake.fail_first, fake.failure = 1, (grpc.StatusCode.INVALID_ARGUMENT, "wrong")
        with pytest.raises(grpc.aio.AioRpcError):
            await infer(stub)
        lines = [await parent.receive("stats")]
        while sum(line["requests"] for line in lines) < 2:
            lines.append(await parent.receive("stats"))
        assert sum(line["servers"].get("a", {}).get("requests", 0) for line in lines) == 2
        assert sum(line["errors"] for line in lines) == 1
        assert sum(line["codes"].get("INVALID_ARGUMENT", 0) for line in lines) == 1
        assert len([ms for line in lines for ms in line["servers"]["a"]["latencies"]]) == 1


async def test_a_worker_reports_a_broken_server():
    async with FakeTriton() as fake, running_worker() as (_, parent, _, stub):
        parent.send_servers(view("a", 0, fake.address))
        fake.fail_first = 1
        call = infer(stub)
        said = await parent.receive("suspect")
        assert (said["server"], said["why"]) == ("a", "UNAVAILABLE: broken")
        call.cancel()


async def test_a_server_whose_connection_was_only_reset_gets_requests_after_its_check():
    async with FakeTriton() as fake, running_worker() as (worker, parent, _, stub):
        worker._pools[0]._first_pause = 600.0
        parent.send_servers(view("a", 0, fake.address))
        fake.hang()
        call = asyncio.ensure_future(_answer(infer(stub, timeout=5)))
        await fake.wait_inside(1)
        fake.reset()
        await parent.receive("suspect")
        parent.report("cleared", server="a")
        fake.release()
        await infer(stub)
        with pytest.raises(grpc.aio.AioRpcError):  # a request is never sent to the same server twice
            await call


async def test_a_drain_finishes_requests_in_flight():
    async with FakeTriton() as fake, running_worker() as (_, parent, code, stub):
        parent.send_servers(view("a", 0, fake.address))
        fake.hang()
        call = asyncio.ensure_future(_answer(infer(stub)))
        await fake.wait_inside(1)
        parent.report("drain")
        while (await stub.ServerReady(service_pb2.ServerReadyRequest())).ready:
            await asyncio.sleep(0)
        with pytest.raises(grpc.aio.AioRpcError, match="draining") as caught:
            await infer(stub)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert not code.done()
        fake.release()
        await call
        assert await code == EXIT_DRAINED


@pytest.mark.parametrize("rest", [0.0, 0.02])
async def test_requests_during_a_drain_fail_with_unavailable_and_never_with_cancelled(rest):
    ended = set()
    async with FakeTriton() as fake, running_worker() as (_, parent, code, stub):
        parent.send_servers(view("a", 0, fake.address))
        await infer(stub)
        fake.latency = 0.2

        async def ask():
            while not code.done():
                try:
                    await stub.ModelInfer(infer_request(b"a text"), timeout=60)
                except grpc.aio.AioRpcError as error:
                    ended.add(error.code())
                    await asyncio.sleep(rest)

        callers = [asyncio.ensure_future(ask()) for _ in range(40)]
        await fake.wait_inside(40)
        parent.report("drain")
        assert await code == EXIT_DRAINED
        await asyncio.gather(*callers)
    assert ended == {grpc.StatusCode.UNAVAILABLE}


async def test_requests_that_a_drain_cuts_fail_with_the_reason():
    port = free_port()
    async with FakeTriton() as fake, running_worker(drain_timeout=0.2, http_port=port) as (_, parent, code, stub):
        await parent.receive("ready")
        parent.send_servers(view("a", 0, fake.address))
        fake.hang()
        call = asyncio.ensure_future(_answer(infer(stub)))
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{port}/v1/embeddings"
            post = asyncio.ensure_future(session.post(url, json={"input": "a text", "model": "a-model"}))
            await fake.wait_inside(2)
            parent.report("drain")
            answer = await post
            assert answer.status == 503
            assert "--drain-timeout" in (await answer.json())["error"]["message"]
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "--drain-timeout" in error.value.details()
        assert await code == EXIT_CUT


async def test_a_drain_ends_though_a_server_that_left_hangs():
    async with FakeTriton() as fake, running_worker(drain_timeout=0.1) as (_, parent, code, stub):
        parent.send_servers(view("a", 0, fake.address))
        fake.hang()
        call = asyncio.ensure_future(_answer(infer(stub)))
        await fake.wait_inside(1)
        parent.send_servers()
        parent.report("drain")
        assert await code == EXIT_CUT
        with pytest.raises(grpc.aio.AioRpcError):
            await call


async def test_every_request_of_a_burst_is_answered_or_refused():
    async with FakeTriton() as fake, running_worker(max_in_flight=100) as (_, parent, _, stub):
        parent.send_servers(view("a", 0, fake.address))
        await infer(stub)
        fake.latency = 0.5
        # This is more than gRPC accepts before the application requests calls.
        ended = await asyncio.gather(*(_answer(infer(stub, timeout=250)) for _ in range(3000)), return_exceptions=True)
        refused = {error.code() for error in ended if isinstance(error, grpc.aio.AioRpcError)}
        assert refused == {grpc.StatusCode.RESOURCE_EXHAUSTED}


async def test_every_readiness_endpoint_reports_whether_requests_have_a_server():
    port, http_port = free_port(), free_port()
    async with (
        FakeTriton() as fake,
        running_worker(port=port, http_port=http_port) as (worker, parent, _, stub),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)

        async def ready():
            """The different answers of all endpoints."""
            async with aiohttp.ClientSession(f"http://127.0.0.1:{http_port}") as session:
                paths = "/health", "/v2/health/ready", "/v2/models/embedding/ready"
                found = {(await session.get(path)).status == 200 for path in paths}
            found.add((await stub.ServerReady(service_pb2.ServerReadyRequest())).ready)
            found.add((await stub.ModelReady(service_pb2.ModelReadyRequest(name="embedding"))).ready)
            found.add((await health.Check(health_pb2.HealthCheckRequest())).status == _SERVING)
            return found

        await parent.receive("ready")
        parent.send_servers(view("a", 0, fake.address))
        await infer(stub)
        assert await ready() == {True}
        watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert (await watch.read()).status == _SERVING
        parent.send_servers(view("a", 0, fake.address, ServerState.UNHEALTHY))
        while worker.dispatcher.servers()[0].state is ServerState.READY:
            await asyncio.sleep(0)
        # The only server answered its last request, so the health checks may be wrong.
        await infer(stub)
        assert await ready() == {True}
        await fake.crash()
        call = infer(stub)
        # The request finds out.
        while await ready() != {False}:
            await asyncio.sleep(0.05)
        call.cancel()
        # The parent has reported nothing.
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_the_largest_request_of_a_server_passes_and_much_larger_ones_are_refused_before_they_are_read():
    async with FakeTriton() as fake, running_worker() as (_, parent, _, stub):
        parent.send_servers(view("a", 0, fake.address))
        text = b"x" * (MAX_REQUEST_BYTES - 4)
        await stub.ModelInfer(infer_request(text), timeout=60, wait_for_ready=True)
        with pytest.raises(grpc.aio.AioRpcError, match="larger than max") as caught:
            await stub.ModelInfer(infer_request(b"x" * 2 * MAX_REQUEST_BYTES), timeout=60)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert len(fake.requests) == 1
        await infer(stub)


async def test_a_worker_sends_signs_of_life_from_the_first_moment_to_the_last():
    async with running_worker() as (worker, parent, code, _):
        assert json.loads(await parent.reader.readline())["type"] == "alive"
        await parent.receive("ready")
        stop, stopping, go_on = worker._endpoints.stop, asyncio.Event(), asyncio.Event()

        async def stop_slowly(grace):
            stopping.set()
            await go_on.wait()
            await stop(grace)

        worker._endpoints.stop = stop_slowly
        parent.report("drain")
        await stopping.wait()
        for _ in range(3):
            await parent.receive("alive")
        go_on.set()
        assert await code == EXIT_DRAINED


async def test_the_status_of_a_hung_parent_has_its_age(monkeypatch):
    port = free_port()
    async with running_worker(http_port=port) as (_, parent, _, _), aiohttp.ClientSession() as session:

        async def status():
            async with session.get(f"http://127.0.0.1:{port}/status") as answer:
                return await answer.json()

        await parent.receive("ready")
        parent.report("status", warnings=["a warning"])
        while "warnings" not in (fresh := await status()):
            await asyncio.sleep(0.01)
        assert fresh["warnings"] == ["a warning"]
        assert "age_s" not in fresh
        monkeypatch.setattr(program, "_OLD_S", 0.0)
        old = await status()
        assert old["age_s"] >= 0
        assert old["warnings"][0] == "a warning"
        assert "s old" in old["warnings"][1]


async def test_a_worker_ends_with_its_parent():
    async with FakeTriton() as fake, running_worker() as (_, parent, code, _):
        parent.send_servers(view("a", 0, fake.address))
        await parent.receive("ready")
        parent.writer.close()
        assert await code == EXIT_ALONE


@pytest.mark.parametrize("option", ["port", "http_port"])
async def test_a_port_that_is_taken_is_named(option):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        async with running_worker(**{option: number}) as (_, parent, code, _):
            said = await parent.receive("failed")
            assert f"--{option.replace('_', '-')} {number}" in said["why"]
            assert await code == EXIT_CANNOT


@pytest.mark.parametrize("end", ["drain", "SIGTERM", "parent"])
async def test_the_process(end, tmp_path):
    config = make_config()
    table = LoadTable.create(config.workers, config.slots)
    ours, theirs = socket.socketpair()
    with theirs:
        fds = "--control-fd", str(theirs.fileno()), "--table-fd", str(table.fd)
        process = subprocess.Popen(
            [sys.executable, "-m", "tritonembed_manager.router.worker", *fds],
            pass_fds=[theirs.fileno(), table.fd],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
        )
    try:
        async with FakeTriton() as fake:
            parent = Parent(*await asyncio.open_connection(sock=ours))
            parent.report("config", **config.to_json())
            parent.send_servers(view("a", 0, fake.address), view("b", 1, "127.0.0.1:1", ServerState.STARTING))
            await parent.receive("ready")
            async with grpc.aio.insecure_channel(f"127.0.0.1:{config.port}", OPTIONS) as channel:
                stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
                await infer(stub)
                fake.hang()
                call = asyncio.ensure_future(_answer(infer(stub)))
                await fake.wait_inside(1)
                assert table.in_flight(0) == 1
                process.send_signal(signal.SIGINT)  # a terminal sends SIGINT to all its processes
                if end == "drain":
                    parent.report("drain")
                elif end == "SIGTERM":
                    process.send_signal(signal.SIGTERM)
                else:
                    parent.writer.close()
                if end != "parent":
                    fake.release()
                    await call
            code = await asyncio.get_running_loop().run_in_executor(None, process.wait, 60)
            assert code == (EXIT_ALONE if end == "parent" else EXIT_DRAINED)
            assert not table.admitted()
            await asyncio.gather(call, return_exceptions=True)
            parent.writer.close()
    finally:
        process.kill()
        process.wait()
        table.close()


async def _answer(call):
    return await call


async def test_a_lame_duck_is_not_ready_and_answers_everything():
    port, http_port = free_port(), free_port()
    async with (
        FakeTriton() as fake,
        running_worker(port=port, http_port=http_port) as (_, parent, code, stub),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        aiohttp.ClientSession(f"http://127.0.0.1:{http_port}") as session,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        await parent.receive("ready")
        parent.send_servers(view("a", 0, fake.address))
        await infer(stub)
        watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert (await watch.read()).status == _SERVING
        parent.report("lame_duck")
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        checked = await health.Check(health_pb2.HealthCheckRequest())
        assert checked.status == health_pb2.HealthCheckResponse.NOT_SERVING
        found = {path: (await session.get(path)).status for path in ("/health", "/v2/health/ready", "/v2/health/live")}
        assert found == {"/health": 503, "/v2/health/ready": 400, "/v2/health/live": 200}
        assert not (await stub.ServerReady(service_pb2.ServerReadyRequest())).ready
        await infer(stub)
        answer = await session.post("/v1/embeddings", json={"input": "a text", "model": "a-model"})
        assert answer.status == 200
        parent.report("drain")
        assert await code == EXIT_DRAINED
