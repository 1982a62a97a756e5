"""`tritonembed-manager serve` on real tritonservers, under load: no client sees it when something dies."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.integration.serve import Load, Serve, serving
from tests.models import ModelShelf


@pytest.fixture(scope="module")
def manager(shelf: ModelShelf) -> Iterator[Serve]:
    """Two servers with one replica each, behind one address that two workers share."""
    arguments = ["--model", shelf("bert"), "--device=cpu", "--servers=2", "--num-replicas=2", "--tokenizer-instances=1"]
    with serving(*arguments, "--health-interval=0.5", "--workers=2", "--load-balancing=least_loaded") as started:
        yield started


def test_a_server_that_is_killed_costs_no_client_an_error_and_comes_back(manager: Serve) -> None:
    before = manager.server("server-0")["restarts"]
    with Load(manager.target) as load:
        load.answers(96)
        manager.until(manager.is_full)
        os.kill(manager.tritonservers()["server-0"], signal.SIGKILL)
        manager.until(lambda: manager.server("server-0")["restarts"] == before + 1)
        load.answers(300)
    assert load.errors == []
    # Without the load, for which the two cores of a small machine are needed.
    manager.until(lambda: manager.states() == ["ready", "ready"])


def test_a_stub_that_is_killed_costs_no_client_an_error_and_its_server_comes_back(manager: Serve) -> None:
    before = manager.server("server-1")["restarts"]
    with Load(manager.target) as load:
        load.answers(96)
        manager.until(manager.is_full)
        began = time.monotonic()
        os.kill(manager.stub("server-1", "embedder"), signal.SIGKILL)
        manager.until(lambda: manager.server("server-1")["restarts"] == before + 1)
        # Triton alone would take longer to notice than this.
        assert time.monotonic() - began < 3
        load.answers(300)
    assert load.errors == []
    manager.until(lambda: manager.states() == ["ready", "ready"])


def test_a_worker_that_is_killed_under_load_is_replaced_and_its_load_is_forgotten(manager: Serve) -> None:
    victim, other = manager.workers()
    # So many connections that both workers have some.
    with Load(manager.target, connections=16) as load:
        load.answers(96)
        manager.until(manager.is_full)
        os.kill(victim, signal.SIGKILL)
        manager.until(lambda: len(manager.workers()) == 2 and victim not in manager.workers())
        manager.until(lambda: manager.status().get("workers") == {"count": 2, "ready": 2, "restarts": 1})
        load.answers(32)
    # The clients of the one that was killed saw their connection break, nobody saw anything else.
    assert load.errors
    assert all(error.startswith("UnavailableError") for error in load.errors), load.errors
    assert other in manager.workers()
    manager.until(lambda: manager.status()["totals"]["in_flight"] == 0, limit=10)
    assert [server["work_bytes"] for server in manager.status()["servers"]] == [0, 0]
    assert manager.status()["totals"]["waiting"] == 0
    assert manager.serves()


def test_all_servers_are_replaced_under_load_through_the_servers_file(manager: Serve, tmp_path: Path) -> None:
    """A second manager attaches to the servers of the first, which starts each of them anew while it is not listed."""
    first, second = (server["address"] for server in manager.status()["servers"])
    listed = tmp_path / "servers"
    listed.write_text(f"{first}\n")
    with serving("--servers-file", listed, "--health-interval=0.5") as attached:

        def list_now(*servers: str) -> None:
            listed.write_text("".join(f"{server}\n" for server in servers))
            attached.until(lambda: [s["id"] for s in attached.status().get("servers", ())] == list(servers))
            attached.until(lambda: attached.states() == ["ready"] * len(servers))

        def start_anew(server: str) -> None:
            restarts = manager.server(server)["restarts"]
            os.kill(manager.tritonservers()[server], signal.SIGKILL)
            manager.until(lambda: manager.server(server)["restarts"] > restarts)
            manager.until(lambda: manager.states() == ["ready", "ready"])

        with Load(attached.target, clients=16, rest_s=0.1) as load:
            load.answers(32)
            list_now(first, second)
            list_now(second)
            start_anew("server-0")
            list_now(second, first)
            list_now(first)
            start_anew("server-1")
            list_now(first, second)
            load.answers(32)
        assert load.errors == []


@contextmanager
def health_told(target: str) -> Iterator[list[int]]:
    """What a watch of the health is told until the manager ends it."""
    told: list[int] = []
    with grpc.insecure_channel(target) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        told.append(next(watch).status)

        def read() -> None:
            with suppress(grpc.RpcError):
                for answer in watch:
                    told.append(answer.status)

        reader = threading.Thread(target=read)
        reader.start()
        yield told
        reader.join(10)
        watch.cancel()


def test_a_drain_finishes_what_is_in_flight_and_leaves_nothing(manager: Serve) -> None:
    """The last one with this manager: it ends it."""
    with Load(manager.target) as load, health_told(manager.target) as told:
        load.answers(96)
        manager.until(manager.is_full)
        manager.family()
        began = time.monotonic()
        load.manager_ends()
        manager.process.send_signal(signal.SIGTERM)
        assert manager.process.wait(40) == 0
        assert time.monotonic() - began < 33
    assert load.errors == []
    # Before anything ended, those that watch were told.
    assert told == [health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING]
    assert manager.family() == []
    assert manager.regions() == []


def test_a_manager_that_is_killed_takes_its_servers_and_workers_along(shelf: ModelShelf) -> None:
    arguments = ["--model", shelf("bert"), "--device=cpu", "--num-replicas=1", "--tokenizer-instances=1"]
    with serving(*arguments) as manager:
        names = {process.name for process in manager.family()}
        assert "tritonserver" in names
        assert manager.workers()
        assert manager.regions()
        manager.process.kill()
        manager.process.wait()
        manager.until(lambda: not manager.family(), limit=30)
        manager.until(lambda: not manager.regions(), limit=5)
