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

from tritonembed._batches import MAX_REQUEST_BYTES
from tritonembed_manager.serve import worker_life
from tritonembed_manager.serve.load_table import LoadTable
from tritonembed_manager.serve.metrics import WorkerMetrics
from tritonembed_manager.serve.model import ServerState
from tritonembed_manager.serve.worker_config import WorkerConfig
from tritonembed_manager.serve.worker_link import Link

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
        "model": "a-model",
        "policy": "round_robin",
        "forward_timeout": 20.0,
        "drain_timeout": 20.0,
        "closing_timeout": 3.0,
        "max_in_flight": 100,
        "max_in_flight_per_server": 50,
        "log_format": "json",
    }
    return WorkerConfig(**{**values, **changes})


class Parent:
    """The parent's end of the socket."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    def say(self, kind, **content):
        self.writer.write(json.dumps({"type": kind, **content}).encode() + b"\n")

    def say_servers(self, *views):
        self.say("servers", servers=[server.to_json() for server in views])

    async def hear(self, kind):
        """The next line of that type."""
        while True:
            line = await asyncio.wait_for(self.reader.readline(), 20)
            assert line, f"the worker hung up before it said {kind}"
            found = json.loads(line)
            if found["type"] == kind:
                return found


@asynccontextmanager
async def running_worker(**changes):
    """A worker in this event loop, its parent, its exit code to come, and a stub of its gRPC port."""
    config = make_config(**changes)
    table = LoadTable.create(config.workers, config.slots)
    ours, theirs = socket.socketpair()
    parent = Parent(*await asyncio.open_connection(sock=ours))
    link = await Link.open(theirs.detach())
    worker = worker_life.Worker(config, table, link, metrics=WorkerMetrics(CollectorRegistry()))
    code = asyncio.ensure_future(worker.run())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{config.port}", OPTIONS) as channel:
        yield worker, parent, code, service_pb2_grpc.GRPCInferenceServiceStub(channel)
    parent.writer.close()
    await code
    assert not table.admitted()
    table.close()


def infer(stub, timeout=10):
    return stub.ModelInfer(infer_request(b"a text"), timeout=timeout, wait_for_ready=True)


async def test_it_serves_what_the_parent_names():
    async with FakeTriton() as fake, running_worker() as (_, parent, _, stub):
        await parent.hear("ready")
        waiting = asyncio.ensure_future(_answer(infer(stub)))
        parent.say_servers(view("a", 0, fake.address))
        await waiting
        assert len(fake.requests) == 1


async def test_it_counts_and_reports():
    async with FakeTriton() as fake, running_worker() as (_, parent, _, stub):
        parent.say_servers(view("a", 0, fake.address))
        await infer(stub)
        fake.fail_first, fake.failure = 1, (grpc.StatusCode.INVALID_ARGUMENT, "wrong")
        with pytest.raises(grpc.aio.AioRpcError):
            await infer(stub)
        lines = [await parent.hear("stats")]
        while sum(line["requests"] for line in lines) < 2:
            lines.append(await parent.hear("stats"))
        assert sum(line["servers"].get("a", {}).get("requests", 0) for line in lines) == 2
        assert sum(line["errors"] for line in lines) == 1
        assert sum(line["codes"].get("INVALID_ARGUMENT", 0) for line in lines) == 1
        assert len([ms for line in lines for ms in line["servers"]["a"]["latencies"]]) == 1


async def test_it_tells_of_a_broken_server():
    async with FakeTriton() as fake, running_worker() as (_, parent, _, stub):
        parent.say_servers(view("a", 0, fake.address))
        fake.fail_first = 1
        with pytest.raises(grpc.aio.AioRpcError):
            await infer(stub, timeout=0.5)
        said = await parent.hear("suspect")
        assert (said["server"], said["why"]) == ("a", "UNAVAILABLE: broken")


async def test_a_server_whose_connection_was_only_reset_gets_requests_once_it_was_looked_at():
    async with FakeTriton() as fake, running_worker() as (worker, parent, _, stub):
        worker._pool._suspension = 8.0
        parent.say_servers(view("a", 0, fake.address))
        fake.hang()
        call = asyncio.ensure_future(_answer(infer(stub)))
        await fake.wait_inside(1)
        fake.reset()
        await parent.hear("suspect")
        parent.say("cleared", server="a")
        fake.release()
        await infer(stub, timeout=5)
        with pytest.raises(grpc.aio.AioRpcError):  # it is never sent to the same server twice
            await call


async def test_a_drain_lets_finish_what_is_in_flight():
    async with FakeTriton() as fake, running_worker() as (_, parent, code, stub):
        parent.say_servers(view("a", 0, fake.address))
        fake.hang()
        call = asyncio.ensure_future(_answer(infer(stub)))
        await fake.wait_inside(1)
        parent.say("drain")
        while (await stub.ServerReady(service_pb2.ServerReadyRequest())).ready:
            await asyncio.sleep(0)
        with pytest.raises(grpc.aio.AioRpcError, match="draining") as caught:
            await infer(stub)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert not code.done()
        fake.release()
        await call
        assert await code == worker_life.EXIT_DRAINED


@pytest.mark.parametrize("rest", [0.0, 0.02])
async def test_callers_who_go_on_asking_hear_that_it_drains_and_never_that_they_cancelled(rest):
    ended = set()
    async with FakeTriton() as fake, running_worker() as (_, parent, code, stub):
        parent.say_servers(view("a", 0, fake.address))
        await infer(stub)
        fake.latency = 0.2

        async def ask():
            while not code.done():
                try:
                    await stub.ModelInfer(infer_request(b"a text"), timeout=10)
                except grpc.aio.AioRpcError as error:
                    ended.add(error.code())
                    await asyncio.sleep(rest)

        callers = [asyncio.ensure_future(ask()) for _ in range(40)]
        await fake.wait_inside(40)
        parent.say("drain")
        assert await code == worker_life.EXIT_DRAINED
        await asyncio.gather(*callers)
    assert ended == {grpc.StatusCode.UNAVAILABLE}


async def test_what_a_drain_cuts_is_told_so():
    port = free_port()
    async with FakeTriton() as fake, running_worker(drain_timeout=0.2, http_port=port) as (_, parent, code, stub):
        await parent.hear("ready")
        parent.say_servers(view("a", 0, fake.address))
        fake.hang()
        call = asyncio.ensure_future(_answer(infer(stub)))
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{port}/v1/embeddings"
            post = asyncio.ensure_future(session.post(url, json={"input": "a text", "model": "a-model"}))
            await fake.wait_inside(2)
            parent.say("drain")
            answer = await post
            assert answer.status == 503
            assert "--drain-timeout" in (await answer.json())["error"]["message"]
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "--drain-timeout" in error.value.details()
        assert await code == worker_life.EXIT_CUT


async def test_a_drain_ends_though_a_server_that_left_hangs():
    async with FakeTriton() as fake, running_worker(drain_timeout=0.1) as (_, parent, code, stub):
        parent.say_servers(view("a", 0, fake.address))
        fake.hang()
        call = asyncio.ensure_future(_answer(infer(stub)))
        await fake.wait_inside(1)
        parent.say_servers()
        parent.say("drain")
        assert await code == worker_life.EXIT_CUT
        with pytest.raises(grpc.aio.AioRpcError):
            await call


async def test_a_burst_is_answered_or_refused_and_nothing_of_it_is_dropped():
    async with FakeTriton() as fake, running_worker(max_in_flight=100) as (_, parent, _, stub):
        parent.say_servers(view("a", 0, fake.address))
        await infer(stub)
        fake.latency = 0.5
        # More than gRPC takes in before anybody has asked for them.
        ended = await asyncio.gather(*(_answer(infer(stub)) for _ in range(3000)), return_exceptions=True)
        refused = {error.code() for error in ended if isinstance(error, grpc.aio.AioRpcError)}
        assert refused == {grpc.StatusCode.RESOURCE_EXHAUSTED}


async def test_every_kind_of_readiness_is_whether_requests_have_a_server_to_go_to():
    port, http_port = free_port(), free_port()
    async with (
        FakeTriton() as fake,
        running_worker(port=port, http_port=http_port) as (worker, parent, _, stub),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)

        async def ready():
            """As each of them says it."""
            async with aiohttp.ClientSession(f"http://127.0.0.1:{http_port}") as session:
                paths = "/health", "/v2/health/ready", "/v2/models/embedding/ready"
                found = {(await session.get(path)).status == 200 for path in paths}
            found.add((await stub.ServerReady(service_pb2.ServerReadyRequest())).ready)
            found.add((await stub.ModelReady(service_pb2.ModelReadyRequest(name="embedding"))).ready)
            found.add((await health.Check(health_pb2.HealthCheckRequest())).status == _SERVING)
            return found

        await parent.hear("ready")
        parent.say_servers(view("a", 0, fake.address))
        await infer(stub)
        assert await ready() == {True}
        watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=20)
        assert (await watch.read()).status == _SERVING
        parent.say_servers(view("a", 0, fake.address, ServerState.UNHEALTHY))
        while worker.dispatcher.servers()[0].state is ServerState.READY:
            await asyncio.sleep(0)
        # Its last request was answered, and there is no other: it may be the health checks that are wrong.
        await infer(stub)
        assert await ready() == {True}
        await fake.crash()
        with pytest.raises(grpc.aio.AioRpcError):
            await infer(stub, timeout=0.3)
        assert await ready() == {False}
        # Without a word of the parent's.
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_what_a_server_takes_goes_through_and_much_more_is_refused_before_it_is_held():
    async with FakeTriton() as fake, running_worker() as (_, parent, _, stub):
        parent.say_servers(view("a", 0, fake.address))
        text = b"x" * (MAX_REQUEST_BYTES - 4)
        await stub.ModelInfer(infer_request(text), timeout=20, wait_for_ready=True)
        with pytest.raises(grpc.aio.AioRpcError, match="larger than max") as caught:
            await stub.ModelInfer(infer_request(b"x" * 2 * MAX_REQUEST_BYTES), timeout=20)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert len(fake.requests) == 1
        await infer(stub)


async def test_it_ends_with_its_parent():
    async with FakeTriton() as fake, running_worker() as (_, parent, code, _):
        parent.say_servers(view("a", 0, fake.address))
        await parent.hear("ready")
        parent.writer.close()
        assert await code == worker_life.EXIT_ALONE


@pytest.mark.parametrize("option", ["port", "http_port"])
async def test_a_port_that_is_taken_is_named(option):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        async with running_worker(**{option: number}) as (_, parent, code, _):
            said = await parent.hear("failed")
            assert f"--{option.replace('_', '-')} {number}" in said["why"]
            assert await code == worker_life.EXIT_CANNOT


@pytest.mark.parametrize("end", ["drain", "SIGTERM", "parent"])
async def test_the_process(end, tmp_path):
    config = make_config()
    table = LoadTable.create(config.workers, config.slots)
    ours, theirs = socket.socketpair()
    with theirs:
        fds = "--control-fd", str(theirs.fileno()), "--table-fd", str(table.fd)
        process = subprocess.Popen(
            [sys.executable, "-m", "tritonembed_manager.serve.worker", *fds],
            pass_fds=[theirs.fileno(), table.fd],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
        )
    try:
        async with FakeTriton() as fake:
            parent = Parent(*await asyncio.open_connection(sock=ours))
            parent.say("config", **config.to_json())
            parent.say_servers(view("a", 0, fake.address), view("b", 1, "127.0.0.1:1", ServerState.STARTING))
            await parent.hear("ready")
            async with grpc.aio.insecure_channel(f"127.0.0.1:{config.port}", OPTIONS) as channel:
                stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
                await infer(stub)
                fake.hang()
                call = asyncio.ensure_future(_answer(infer(stub)))
                await fake.wait_inside(1)
                assert table.in_flight(0) == 1
                process.send_signal(signal.SIGINT)  # a terminal sends it to everyone
                if end == "drain":
                    parent.say("drain")
                elif end == "SIGTERM":
                    process.send_signal(signal.SIGTERM)
                else:
                    parent.writer.close()
                if end != "parent":
                    fake.release()
                    await call
            code = await asyncio.get_running_loop().run_in_executor(None, process.wait, 20)
            assert code == (worker_life.EXIT_ALONE if end == "parent" else worker_life.EXIT_DRAINED)
            assert not table.admitted()
            await asyncio.gather(call, return_exceptions=True)
            parent.writer.close()
    finally:
        process.kill()
        process.wait()
        table.close()


async def _answer(call):
    return await call
