"""`tritonembed-manager serve` on real tritonservers, under load: clients do not notice when a process dies."""

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.integration.serve import Load, Serve

from tritonembed import EmbeddingClient

STATUS_AGE_S = 2.0
"""The status is at most half as old."""


@pytest.fixture(scope="module")
def manager(two_servers: Serve) -> Serve:
    """Two servers behind one address that two workers share. The last test here ends it."""
    return two_servers


def test_a_server_that_is_killed_costs_no_client_an_error_and_comes_back(manager: Serve) -> None:
    manager.check_a_death("server-0", lambda: manager.tritonservers()["server-0"])


def test_a_worker_that_is_killed_under_load_is_replaced_and_its_load_is_forgotten(manager: Serve) -> None:
    victim, other = manager.workers()
    # There are enough connections for both workers.
    with Load(manager.target, connections=16) as load:
        load.answers(96)
        manager.until(manager.is_full)
        os.kill(victim, signal.SIGKILL)
        manager.until(lambda: len(manager.workers()) == 2 and victim not in manager.workers())
        manager.until(lambda: manager.status().get("workers") == {"count": 2, "ready": 2, "restarts": 1})
        load.answers(32)
    # Clients of the killed worker lost their connections. There are no other errors.
    assert load.errors
    assert all(error.startswith("UnavailableError") for error in load.errors), load.errors
    assert other in manager.workers()
    manager.until(lambda: manager.status()["totals"]["in_flight"] == 0)
    assert [server["work_bytes"] for server in manager.status()["servers"]] == [0, 0]
    assert manager.status()["totals"]["waiting"] == 0
    assert manager.serves()


def test_a_stopped_worker_no_longer_listens_and_is_replaced_within_three_seconds(manager: Serve) -> None:
    # A busy machine may be late once.
    assert any(seconds_of_a_stopped_worker(manager) < 3 for _ in range(3))


def seconds_of_a_stopped_worker(manager: Serve) -> float:
    """From the signal to the end of the worker, which is then replaced."""
    victim, other = manager.workers()
    before = manager.status()["workers"]["restarts"]
    stopped = time.monotonic()
    os.kill(victim, signal.SIGSTOP)
    # The process is gone, and so are its sockets.
    manager.until(lambda: not Path(f"/proc/{victim}").exists())
    seconds = time.monotonic() - stopped
    # New connections reach the other worker or the new one.
    for _ in range(20):
        with EmbeddingClient(manager.target) as client:
            client.embed(["a sentence"], timeout=30)
    manager.until(lambda: manager.status().get("workers") == {"count": 2, "ready": 2, "restarts": before + 1})
    assert other in manager.workers()
    return seconds


@contextmanager
def stopped(pids: Iterable[int]) -> Iterator[None]:
    """Processes that do nothing until the end of the block."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@contextmanager
def watched_health(target: str) -> Iterator[list[int]]:
    """The statuses that a health watch receives until the manager ends it."""
    statuses: list[int] = []
    with grpc.insecure_channel(target) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        statuses.append(next(watch).status)

        def read() -> None:
            with suppress(grpc.RpcError):
                for answer in watch:
                    statuses.append(answer.status)

        reader = threading.Thread(target=read)
        reader.start()
        yield statuses
        reader.join(60)
        watch.cancel()


def test_a_drain_finishes_requests_in_flight_and_leaves_nothing(manager: Serve) -> None:
    """This is the last test, because it ends the manager."""
    with Load(manager.target) as load, watched_health(manager.target) as statuses:
        load.answers(96)
        servers = manager.tritonservers().values()
        with stopped(servers):
            # No request ends meanwhile, so those that the status counts are in flight.
            manager.until(manager.is_full)
            time.sleep(STATUS_AGE_S)
            manager.until(manager.is_full)
            load.manager_ends()
            before = load.done
            manager.process.send_signal(signal.SIGTERM)
        # The exit code is 1 if --drain-timeout cut a request.
        assert manager.process.wait(60) == 0
    assert load.errors == []
    assert load.done - before >= 64
    # Watches were notified before anything ended.
    assert statuses == [health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING]
    assert manager.family() == []
    assert manager.regions() == []
