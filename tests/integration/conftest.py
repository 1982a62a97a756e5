"""Real servers that test files share: tritonserver, vLLM on the CPU, a small BERT. A start takes 10 s of a core."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests import hostile_folder
from tests.integration.preloaded import Preloaded, preloaded_python
from tests.integration.serve import Serve, running_server, serving
from tests.models import ModelShelf

from tritonembed import EmbeddingClient
from tritonembed_perf.server import RunningServer

MAX_MODEL_LEN = 48
"""Token limit of `two_servers`. The model's own limit is 64."""


@pytest.fixture(scope="session")
def model(shelf: ModelShelf) -> Path:
    """The model of the shared servers: BERT with mean pooling, 64 tokens, prompts `query` and `document`."""
    return shelf("bert")


@pytest.fixture(scope="session")
def server(model: Path) -> Iterator[RunningServer]:
    """The session's server, on the direct executor; those below have the openvino executor.

    A test that would harm it starts its own.
    """
    with running_server(str(model), ["--device", "cpu", "--executor", "direct"]) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: RunningServer) -> Iterator[EmbeddingClient]:
    """A client of the session's server."""
    with EmbeddingClient(server.target) as connected:
        yield connected


@pytest.fixture(scope="session")
def second_server(model: Path) -> Iterator[Callable[[], RunningServer]]:
    """Returns a server that tests may harm: the same model, explicit model control, queues with priorities.

    It starts a new server only if a test ended the last one.
    """
    options = ["--device", "cpu", "--workers", "1", "--model-control-mode", "explicit", "--log-verbose"]
    # The session's server shows the check at load.
    options += ["--no-reference"]
    with ExitStack() as stack:
        started: list[RunningServer] = []

        def give() -> RunningServer:
            if not started or started[-1].process.poll() is not None:
                running = running_server(str(model), [*options, "--queue-limits"])
                started.append(stack.enter_context(running))
            return started[-1]

        yield give


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file next to modules that write into it if anything imports them."""
    return hostile_folder.fill(tmp_path_factory.mktemp("hostile folder"))


@pytest.fixture(scope="session")
def manager(model: Path, hostile: Path) -> Iterator[Serve]:
    """The session's manager: two workers, one server with two replicas. A test that would harm it starts its own."""
    arguments = ["--model", model, "--device=cpu", "--num-replicas=2", "--tokenizer-instances=1", "--workers=2"]
    options = ["--no-reference", "--health-interval=3600", "--instruction-template=Instruct: {instruction}\nQuery: "]
    with serving(*arguments, *options, folder=hostile.parent) as started:
        yield started


@pytest.fixture(scope="session")
def two_servers(model: Path) -> Iterator[Serve]:
    """A manager of two servers with one replica each, behind two workers that share the port.

    test_serve_clients.py only sends requests. test_serve_failover.py kills parts, which come back, and ends it.
    """
    arguments = ["--model", model, "--device=cpu", "--servers=2", "--num-replicas=2", "--tokenizer-instances=1"]
    options = ["--admin", "--served-model-name=minilm", "--workers=2", "--log-format=json", "--no-reference"]
    options += ["--health-interval=3600", "--load-balancing=least_loaded"]
    # An engine argument of vLLM is set through an environment variable.
    with serving(*arguments, *options, TRITONEMBED_MAX_MODEL_LEN=str(MAX_MODEL_LEN)) as started:
        yield started


@pytest.fixture(scope="session")
def preloaded() -> Iterator[Preloaded]:
    """Runs modules that load a model into vLLM, without the time that the import of vLLM takes."""
    with preloaded_python() as started:
        yield started
