"""A real manager with a server that flaps, and with a server that sends wrong answers. Both are fakes."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from tests.fakes.bad_network import BadNetwork, bad_network
from tests.fakes.threaded import fake_triton
from tests.fakes.triton import DIMENSIONS, FakeTriton
from tests.integration.serve import Serve, serving

from tritonembed import EmbeddingClient, TritonEmbedError
from tritonembed_protocol.framing import frame

BOTH = ["ready", "ready"]
FLAP_S = 0.25
LOAD_S = 2.0


def rows(values: np.ndarray) -> Callable[[Any], None]:
    """A fault: this vector for each sentence."""

    def spoil(response: Any) -> None:
        response.raw_output_contents[0] = frame([values.astype("<f4").tobytes()] * response.outputs[0].shape[0])

    return spoil


def no_vectors(response: Any) -> None:
    response.raw_output_contents[0] = b""


def cut(response: Any) -> None:
    response.raw_output_contents[0] = response.raw_output_contents[0][:-5]


def no_content(response: Any) -> None:
    del response.raw_output_contents[:]


def empty(response: Any) -> None:
    response.Clear()


@pytest.fixture(scope="module")
def liar() -> Iterator[FakeTriton]:
    with fake_triton() as fake:
        yield fake


@pytest.fixture(scope="module")
def network(liar: FakeTriton) -> Iterator[BadNetwork]:
    with bad_network(liar.address) as network:
        yield network


@pytest.fixture(scope="module")
def manager(network: BadNetwork) -> Iterator[Serve]:
    """A manager of a good server and, behind a network, the faulty server."""
    with (
        fake_triton() as good,
        serving("--server", good.address, "--server", network.address, "--health-interval=0.1") as manager,
    ):
        manager.until(lambda: manager.states() == BOTH)
        yield manager


LIES = {
    "NaN": rows(np.full(DIMENSIONS, np.nan)),
    "infinity": rows(np.full(DIMENSIONS, np.inf)),
    "zeros": rows(np.zeros(DIMENSIONS)),
    "another size": rows(np.ones(DIMENSIONS // 2)),
    "no vectors": no_vectors,
    "a cut vector": cut,
    "no content": no_content,
    "an empty answer": empty,
}


@pytest.mark.parametrize("lie", LIES)
def test_a_server_with_wrong_answers_gets_no_requests_until_they_are_right(
    manager: Serve, liar: FakeTriton, lie: str
) -> None:
    manager.until(lambda: manager.states() == BOTH)
    liar.spoil = LIES[lie]
    try:
        manager.until(lambda: manager.states()[1] in ("unhealthy", "refused"))
        with EmbeddingClient(manager.target) as client:
            found = client.embed([f"sentence {number}" for number in range(8)], batch_size=1, timeout=60).embeddings
        assert np.allclose(np.linalg.norm(found, axis=1), 1.0)
    finally:
        liar.spoil = lambda _: None


def test_a_server_that_flaps_costs_no_request(manager: Serve, network: BadNetwork) -> None:
    """Every quarter of a second, its connections begin or cease to break."""
    manager.until(lambda: manager.states() == BOTH)
    over = threading.Event()
    network.reset_count = 0

    def flap() -> None:
        while not over.wait(FLAP_S):
            network.reset_answers_after = 0 if network.reset_answers_after is None else None
        network.reset_answers_after = None

    def call(number: int) -> tuple[int, list[str]]:
        answered, errors, began = 0, [], time.monotonic()
        with EmbeddingClient(manager.target) as client:
            # A slow machine needs longer for a request to meet a broken connection.
            while (passed := time.monotonic() - began) < LOAD_S or (passed < 60 and not network.reset_count):
                try:
                    answered += len(client.embed([f"caller {number}"] * 3, timeout=60).embeddings) == 3
                except TritonEmbedError as error:
                    errors.append(str(error))
        return answered, errors

    with ThreadPoolExecutor(5) as threads:
        flapping = threads.submit(flap)
        calls = list(threads.map(call, range(4)))
        over.set()
        flapping.result()
    assert network.reset_count
    assert all(answered for answered, _ in calls)
    assert [error for _, errors in calls for error in errors] == []
    manager.until(lambda: manager.states() == BOTH)
