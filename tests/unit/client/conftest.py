"""Fake servers for each test, and a client."""

import pytest
from tests.unit.client.fake_server import FakeServer, Gate

from tritonembed import EmbeddingClient


@pytest.fixture
def server():
    fake = FakeServer()
    yield fake
    while Gate.made:
        Gate.made.pop().open()  # so that no thread of the server keeps waiting
    fake.close(grace=10)


@pytest.fixture
def two():
    """Two fake servers, for clients of both."""
    fakes = [FakeServer(), FakeServer()]
    yield fakes
    while Gate.made:
        Gate.made.pop().open()
    for fake in fakes:
        fake.close(grace=10)


@pytest.fixture
def client(server):
    with EmbeddingClient(server.target) as opened:
        yield opened
