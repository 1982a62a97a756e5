"""The protocol of --xds-port: what a client gets, and when. The server is real, on a real port."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from tests.fakes.certificates import Authority, Files

from tritonembed_manager.errors import StartError
from tritonembed_manager.router.control.xds.server import CLUSTER, ENDPOINTS, LISTENER, METHOD, SERVICE, XdsServer
from tritonembed_manager.router.control.xds.xds_pb import xds_pb2 as pb
from tritonembed_manager.router.interfaces import ServerState, ServerView
from tritonembed_manager.router.tls import Pems
from tritonembed_perf.server import free_ports

HEALTHY, UNHEALTHY, DRAINING = 1, 2, 3
SOON_S = 0.2


def view(number: int, state: ServerState = ServerState.READY, **more: Any) -> ServerView:
    return ServerView(
        id=f"s{number}",
        slot=number,
        address=f"127.0.0.1:{8000 + number}",
        http_address=None,
        metrics_address=None,
        state=state,
        launched=False,
        **more,
    )


@asynccontextmanager
async def running(pems: Pems | None = None, models: tuple[str, ...] = ("embedding",)) -> AsyncIterator[tuple[Any, str]]:
    [port] = free_ports(1)
    server = XdsServer("127.0.0.1", port, "least_loaded", models, pems)
    task = asyncio.ensure_future(server.run())
    try:
        yield server, f"127.0.0.1:{port}"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Client:
    """A stream of a client."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        call = channel.stream_stream(
            f"/{SERVICE}/{METHOD}", pb.DiscoveryRequest.SerializeToString, pb.DiscoveryResponse.FromString
        )
        self._stream = call(wait_for_ready=True)

    async def ask(self, kind: str, *names: str, nonce: str = "", **more: Any) -> None:
        await self._stream.write(pb.DiscoveryRequest(type_url=kind, resource_names=names, response_nonce=nonce, **more))

    async def answer(self) -> Any:
        return await asyncio.wait_for(self._stream.read(), 20)

    async def is_silent(self) -> bool:
        reading = asyncio.ensure_future(self._stream.read())
        done, _ = await asyncio.wait([reading], timeout=SOON_S)
        reading.cancel()
        return not done


@asynccontextmanager
async def connected(target: str, credentials: grpc.ChannelCredentials | None = None) -> AsyncIterator[Client]:
    opened = grpc.aio.insecure_channel(target) if credentials is None else grpc.aio.secure_channel(target, credentials)
    async with opened as channel:
        yield Client(channel)


def states(answer: Any) -> dict[int, int]:
    """The health of the endpoints, by port."""
    [resource] = answer.resources
    groups = pb.ClusterLoadAssignment.FromString(resource.value).endpoints
    return {
        one.endpoint.address.socket_address.port_value: one.health_status
        for group in groups
        for one in group.lb_endpoints
    }


def test_a_client_gets_every_change_of_what_it_named() -> None:
    async def run() -> None:
        async with running() as (server, target), connected(target) as client:
            await client.ask(ENDPOINTS, "embedding")
            answer = await client.answer()
            assert states(answer) == {}
            await client.ask(ENDPOINTS, "embedding", nonce=answer.nonce)
            server.update([view(1), view(2, ServerState.UNHEALTHY)])
            answer = await client.answer()
            assert states(answer) == {8001: HEALTHY, 8002: UNHEALTHY}
            await client.ask(ENDPOINTS, "embedding", nonce=answer.nonce)
            server.update([view(1), view(2)])
            answer = await client.answer()
            assert states(answer) == {8001: HEALTHY, 8002: HEALTHY}
            await client.ask(ENDPOINTS, "embedding", nonce=answer.nonce)
            server.drain()
            assert states(await client.answer()) == {8001: DRAINING, 8002: DRAINING}

    asyncio.run(run())


def test_a_change_waits_for_the_acknowledgement_of_the_last_one() -> None:
    async def run() -> None:
        async with running() as (server, target), connected(target) as client:
            await client.ask(ENDPOINTS, "embedding")
            first = await client.answer()
            server.update([view(1)])
            server.update([view(1), view(2)])
            # An answer to an older message is none to this one.
            await client.ask(ENDPOINTS, "embedding", nonce="0")
            # Refused or not, the client knows of it. What it refused is not sent again.
            await client.ask(ENDPOINTS, "embedding", nonce=first.nonce, error_detail=pb.Status(code=3))
            second = await client.answer()
            assert states(second) == {8001: HEALTHY, 8002: HEALTHY}
            assert second.nonce != first.nonce
            await client.ask(ENDPOINTS, "embedding", nonce=second.nonce, error_detail=pb.Status(code=3))
            assert await client.is_silent()

    asyncio.run(run())


def test_models_have_clusters_and_listeners_of_their_own() -> None:
    async def run() -> None:
        async with running(models=("embedding", "rerank")) as (server, target), connected(target) as client:
            await client.ask(CLUSTER)
            answer = await client.answer()
            assert [pb.Cluster.FromString(one.value).name for one in answer.resources] == ["embedding", "rerank"]
            await client.ask(LISTENER, "rerank", "unknown")
            answer = await client.answer()
            assert [pb.Listener.FromString(one.value).name for one in answer.resources] == ["rerank"]
            await client.ask(ENDPOINTS, "rerank")
            answer = await client.answer()
            assert states(answer) == {}
            await client.ask(ENDPOINTS, "rerank", nonce=answer.nonce)
            server.update([view(1), view(2, ensemble="rerank")])
            assert states(await client.answer()) == {8002: HEALTHY}

    asyncio.run(run())


def test_tls_is_that_of_the_other_ports(tmp_path: Path) -> None:
    files, clients = Files(tmp_path), Authority()
    pems = Pems(files.certificate.read_text(), files.key.read_text(), clients.pem)
    certificate, key = clients.sign()

    def credentials(*pair: str) -> grpc.ChannelCredentials:
        chain, secret = [one.encode() for one in pair] or (None, None)
        return grpc.ssl_channel_credentials(files.ca.read_bytes(), secret, chain)

    async def names(target: str, *pair: str) -> list[str]:
        async with connected(target, credentials(*pair)) as client:
            await client.ask(CLUSTER)
            return [pb.Cluster.FromString(one.value).name for one in (await client.answer()).resources]

    async def run() -> None:
        async with running(pems) as (_, target):
            assert await names(target, certificate, key) == ["embedding"]
            async with grpc.aio.secure_channel(target, credentials()) as channel:
                with pytest.raises((grpc.aio.AioRpcError, asyncio.InvalidStateError)):
                    await channel.stream_stream(f"/{SERVICE}/{METHOD}")(timeout=5).read()

    asyncio.run(run())


def test_a_port_in_use_is_one_line() -> None:
    async def run() -> None:
        async with running() as (_, target), connected(target) as client:
            await client.ask(CLUSTER)
            await client.answer()
            other = XdsServer("127.0.0.1", int(target.rpartition(":")[2]), "random", ("embedding",), None)
            with pytest.raises(StartError, match="--xds-port: cannot listen on 127"):
                await other.run()

    asyncio.run(run())
