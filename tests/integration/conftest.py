"""Real servers that files share: tritonserver, vLLM on the CPU, a small BERT. A start takes ten seconds of a CPU."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.integration.serve import Serve, serving
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


@pytest.fixture(scope="session")
def second_server(model: Path) -> Iterator[Callable[[], RunningServer]]:
    """Gives a server that may be harmed, of the same model, with models on demand and queues that know priorities.

    The one that was given before, unless a test ended it: then a new one.
    """
    options = ["--device", "cpu", "--workers", "1", "--model-control-mode", "explicit", "--log-verbose"]
    with ExitStack() as stack:
        started: list[RunningServer] = []

        def give() -> RunningServer:
            if not started or started[-1].process.poll() is not None:
                running = running_server(str(model), [*options, "--queue-limits"])
                started.append(stack.enter_context(running))
            return started[-1]

        yield give


@pytest.fixture(scope="session")
def manager(model: Path) -> Iterator[Serve]:
    """The session's manager: a server with two replicas behind two workers. A test that harms it starts its own."""
    arguments = ["--model", model, "--device=cpu", "--num-replicas=2", "--tokenizer-instances=1", "--workers=2"]
    with serving(*arguments, "--health-interval=3600") as started:
        yield started
