"""A real manager, attached to a real tritonserver twice: directly, and over a network that delays, cuts and forgets."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tests.fakes.bad_network import BadNetwork, bad_network
from tests.integration.serve import Serve, serving

from tritonembed import EmbeddingClient, TritonEmbedError

BOTH = ["ready", "ready"]
TEXTS = [f"sentence {number} of those that travel badly" for number in range(24)]
LOAD_S = 0.7


@pytest.fixture(scope="module")
def server(manager: Serve) -> str:
    """The address of the server of the session's manager."""
    return str(manager.until(manager.status)["servers"][0]["address"])


@pytest.fixture(scope="module")
def network(server: str) -> Iterator[BadNetwork]:
    """A network in front of the server."""
    with bad_network(server) as network:
        yield network


@pytest.fixture(scope="module")
def attached(server: str, network: BadNetwork) -> Iterator[Serve]:
    """A manager of the server itself, and of the same server over the network."""
    options = ["--health-interval=0.2", "--health-timeout=2", "--load-balancing=round_robin"]
    with serving("--server", server, "--server", network.address, *options) as manager:
        manager.until(lambda: manager.states() == BOTH)
        yield manager


@pytest.fixture(scope="module")
def known(server: str) -> np.ndarray:
    """The texts' vectors, computed without a manager or a network."""
    with EmbeddingClient(server) as client:
        return client.embed(TEXTS).embeddings


class Load:
    """Outcomes of callers that call for LOAD_S, and on a slow machine longer, until `enough` holds.

    right: answers whose vectors were all right.
    """

    def __init__(self, manager: Serve, known: np.ndarray, enough: Callable[["Load"], object] = lambda _: True) -> None:
        self.right = 0
        self.wrong = 0
        self.errors: list[str] = []
        self._manager, self._known, self._enough, self._began = manager, known, enough, time.monotonic()
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(self._call, range(4)))

    def _goes_on(self) -> bool:
        passed = time.monotonic() - self._began
        return passed < LOAD_S or (passed < 60 and not self._enough(self))

    def _call(self, number: int) -> None:
        with EmbeddingClient(self._manager.target) as client:
            while self._goes_on():
                count = 1 + number * 5
                try:
                    found = client.embed(TEXTS[number : number + count], timeout=60).embeddings
                except TritonEmbedError as error:
                    self.errors.append(str(error))
                    continue
                expected = self._known[number : number + count]
                is_right = found.shape == expected.shape and np.allclose(found, expected, atol=1e-4)
                self.right += is_right
                self.wrong += not is_right


def test_delays_and_little_bandwidth_cost_time_and_nothing_else(
    attached: Serve, network: BadNetwork, known: np.ndarray
) -> None:
    network.delay_s, network.bytes_per_s = 0.05, 20_000
    load = Load(attached, known)
    network.delay_s, network.bytes_per_s = 0.0, None
    assert (load.errors, load.wrong) == ([], 0)
    assert load.right
    assert attached.states() == BOTH


def test_a_connection_that_breaks_in_the_middle_of_an_answer_costs_no_request(
    attached: Serve, network: BadNetwork, known: np.ndarray
) -> None:
    network.reset_count = 0
    network.reset_answers_after = 2000
    load = Load(attached, known, lambda _: network.reset_count)
    network.reset_answers_after = None
    assert network.reset_count
    assert (load.errors, load.wrong) == ([], 0)
    attached.until(lambda: attached.states() == BOTH)


def test_answers_that_a_network_garbles_break_no_manager_and_it_recovers(
    attached: Serve, network: BadNetwork, known: np.ndarray
) -> None:
    """A changed bit of a vector can't be detected: HTTP/2 has no checksum. Other changes are errors or are retried."""
    network.corrupt = True
    load = Load(attached, known, lambda load: load.right)
    network.corrupt = False
    assert load.right
    # gRPC's message for an exception in the manager.
    assert not [error for error in load.errors if "Unexpected" in error]
    assert attached.process.poll() is None
    assert attached.status()["workers"]["restarts"] == 0
    attached.until(lambda: attached.states() == BOTH)
    after = Load(attached, known)
    assert (after.errors, after.wrong) == ([], 0)


def test_a_server_whose_connections_were_forgotten_is_ready_again_over_new_connections(
    attached: Serve, network: BadNetwork, known: np.ndarray
) -> None:
    attached.until(lambda: attached.states() == BOTH)
    opened = network.connections
    network.vanish_open_ones()
    attached.until(lambda: network.connections > opened)
    attached.until(lambda: attached.states() == BOTH)
