"""grpc.health.v1, called like load balancers and probes do, on a real grpc.aio server."""

from types import SimpleNamespace

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from tritonembed_manager.router.apis.grpc_health import SERVICES, add_health
from tritonembed_manager.router.interfaces import ServerState

SERVING, NOT_SERVING, UNKNOWN = (
    health_pb2.HealthCheckResponse.ServingStatus.Value(name) for name in ("SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
)


class Manager:
    """The part of a manager that the endpoint uses."""

    def __init__(self):
        self.states = [ServerState.STARTING, ServerState.STARTING]
        self.is_serving = True

    def serving(self, model=""):
        return [index for index, state in enumerate(self.states) if state is ServerState.READY]


@pytest.fixture
async def plane():
    manager = Manager()
    server = grpc.aio.server()
    health = add_health(server, manager, lambda: manager.is_serving)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield SimpleNamespace(manager=manager, health=health, stub=HealthStub(channel), server=server)
    await server.stop(None)


def ask(service=""):
    return health_pb2.HealthCheckRequest(service=service)


async def statuses(plane):
    return [(await plane.stub.Check(ask(service))).status for service in SERVICES]


async def test_serving_while_a_server_is_ready(plane):
    assert set(await statuses(plane)) == {NOT_SERVING}
    plane.manager.states[1] = ServerState.READY
    assert await statuses(plane) == [SERVING] * 3
    plane.manager.states[1] = ServerState.UNHEALTHY
    assert await statuses(plane) == [NOT_SERVING] * 3


async def test_not_serving_while_it_drains(plane):
    plane.manager.states[0] = ServerState.READY
    plane.manager.is_serving = False
    assert await statuses(plane) == [NOT_SERVING] * 3


async def test_another_service_is_not_found(plane):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await plane.stub.Check(ask("another"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_watch_sends_every_change_and_ends_with_the_drain(plane):
    watch = plane.stub.Watch(ask(SERVICES[1]), timeout=20)
    assert (await watch.read()).status == NOT_SERVING
    plane.manager.states[0] = ServerState.READY
    plane.health.refresh()
    assert (await watch.read()).status == SERVING
    plane.health.refresh()
    plane.manager.is_serving = False
    plane.health.refresh()
    assert (await watch.read()).status == NOT_SERVING
    assert await watch.read() is grpc.aio.EOF
    assert await watch.code() is grpc.StatusCode.OK


async def test_watch_of_another_service(plane):
    watch = plane.stub.Watch(ask("another"), timeout=20)
    assert (await watch.read()).status == UNKNOWN
    watch.cancel()


async def test_watches_do_not_hold_up_a_stop(plane):
    plane.manager.states[0] = ServerState.READY
    watches = [plane.stub.Watch(ask(service), timeout=20) for service in SERVICES]
    for watch in watches:
        assert (await watch.read()).status == SERVING
    plane.manager.is_serving = False
    plane.health.refresh()
    await plane.server.stop(grace=20)
    for watch in watches:
        assert (await watch.read()).status == NOT_SERVING
        assert await watch.read() is grpc.aio.EOF
