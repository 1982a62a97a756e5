"""`serve --data-plane envoy` on real tritonservers, under load: clients do not notice when a process dies."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.serve import Load, Serve, serving
from tests.processes import command

from tritonembed import EmbeddingClient, UnavailableError

STATUS_AGE_S = 2.0
"""The status is at most half as old."""


@pytest.fixture(scope="module")
def manager(model: Path) -> Iterator[Serve]:
    """Two servers with one replica each behind Envoy. The last test here ends it."""
    arguments = ["--model", model, "--device=cpu", "--servers=2", "--num-replicas=2", "--tokenizer-instances=1"]
    options = ["--workers=2", "--data-plane=envoy", "--load-balancing=least_loaded", "--no-reference"]
    with serving(*arguments, *options) as started:
        yield started


def test_a_server_that_is_killed_costs_no_client_an_error_and_comes_back(manager: Serve) -> None:
    manager.check_a_death("server-0", lambda: manager.tritonservers()["server-0"])


def test_a_dead_stub_costs_no_client_an_error(manager: Serve) -> None:
    manager.check_a_death("server-1", lambda: manager.stub("server-1", "embedder"))


def test_requests_of_megabytes_survive_the_death_of_a_server(manager: Serve) -> None:
    before = manager.server("server-0")["restarts"]
    with Load(manager.target, clients=4, megabytes=5) as load:
        load.answers(4)
        manager.until(lambda: manager.status()["totals"]["in_flight"] >= 2)
        os.kill(manager.tritonservers()["server-0"], signal.SIGKILL)
        manager.until(lambda: manager.server("server-0")["restarts"] == before + 1)
        load.answers(4)
    assert load.errors == []
    manager.until(lambda: manager.states() == ["ready", "ready"])


def test_envoy_that_is_killed_or_stopped_comes_back(manager: Serve) -> None:
    for number in (signal.SIGKILL, signal.SIGSTOP):
        before = manager.status()["envoy"]["restarts"]
        [victim] = [process.pid for process in manager.family() if process.name == "envoy"]
        assert "--disable-hot-restart" in command(victim)
        os.kill(victim, number)
        manager.until(lambda before=before: manager.status().get("envoy", {}).get("restarts") == before + 1)
        manager.until(manager.serves)


def test_a_drain_finishes_requests_in_flight_and_leaves_nothing(manager: Serve) -> None:
    """This is the last test, because it ends the manager."""
    with Load(manager.target) as load:
        load.answers(96)
        servers = manager.tritonservers().values()
        for pid in servers:
            os.kill(pid, signal.SIGSTOP)
        try:
            # No request ends meanwhile, so those that the status counts are in flight.
            manager.until(manager.is_full)
            time.sleep(STATUS_AGE_S)
            manager.until(manager.is_full)
            load.manager_ends()
            before = load.done
            manager.process.send_signal(signal.SIGTERM)
        finally:
            for pid in servers:
                os.kill(pid, signal.SIGCONT)
        # The exit code is 1 if --drain-timeout cut a request.
        assert manager.process.wait(60) == 0
    assert load.errors == []
    assert load.done - before >= 64
    assert manager.family() == []
    assert manager.regions() == []
    with pytest.raises(UnavailableError), EmbeddingClient(manager.target) as client:
        client.embed(["a sentence"], timeout=2)
