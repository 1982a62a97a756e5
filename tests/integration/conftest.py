"""One real server a session: tritonserver, vLLM on the CPU, a small BERT."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.models import ModelShelf

from tritonembed import EmbeddingClient
from tritonembed_perf.server import RunningServer, running_server


@pytest.fixture(scope="session")
def model(shelf: ModelShelf) -> Path:
    """The session server's model: BERT with mean pooling, 64 tokens, prompts `query` and `document`."""
    return shelf("bert")


@pytest.fixture(scope="session")
def server(model: Path) -> Iterator[RunningServer]:
    """The session's server; a test that harms it starts its own."""
    with running_server(str(model), ["--device", "cpu"]) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: RunningServer) -> Iterator[EmbeddingClient]:
    """Of the session's server."""
    with EmbeddingClient(server.target) as connected:
        yield connected
