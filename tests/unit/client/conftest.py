"""A fake server for each test, and a client of it."""

import pytest
from tests.unit.client.fake_server import FakeServer, Gate

from tritonembed import EmbeddingClient


@pytest.fixture
def server():
    fake = FakeServer()
    yield fake
    while Gate.made:
        Gate.made.pop().open()  # no thread of the server waits on
    fake.close()


@pytest.fixture
def client(server):
    with EmbeddingClient(server.target) as opened:
        yield opened
