"""`tritonembed-manager serve` on all GPUs of the machine: replicas share them, and clients notice no death."""

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest
from tests.integration.reference import cosines, reference_vectors
from tests.integration.serve import Load, Serve, serving
from tests.models import ModelShelf

from tritonembed import EmbeddingClient

pytestmark = pytest.mark.gpu
TEXTS = [" ".join(["some words that fill a sentence"] * n) for n in range(1, 20)]
REPLICAS = 2
"""Replicas per GPU."""

LEAST_MIB = 500
"""Memory in use on a GPU with replicas. CUDA alone takes this much."""


def used_mib() -> list[int]:
    """Memory in use on each GPU."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return [int(line) for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()]


def test_every_gpu_has_a_server_with_its_replicas(shelf: ModelShelf) -> None:
    folder = shelf("bert")
    before = used_mib()
    gpus = len(before)
    with serving("--model", folder, f"--num-gpus={gpus}", f"--num-replicas={REPLICAS * gpus}") as manager:
        servers = manager.status()["servers"]
        assert [server["replicas"] for server in servers] == [REPLICAS] * gpus
        with EmbeddingClient(manager.target) as client:
            # Round robin: every server answers.
            vectors = [client.embed(TEXTS).embeddings for _ in range(2 * gpus)]
        assert all(used - idle > LEAST_MIB for used, idle in zip(used_mib(), before, strict=True))
        # Per server: the daemon, and its process that holds the GPU.
        assert sum(process.name.startswith("nvidia-cuda-mp") for process in manager.family()) == 2 * gpus
        log = manager.log()
        manager.process.send_signal(signal.SIGTERM)
        assert manager.process.wait(60) == 0
        assert manager.family() == []
        assert manager.regions() == []
        manager.until(lambda: all(used - idle < LEAST_MIB for used, idle in zip(used_mib(), before, strict=True)))
    assert "the scheduler executor serves" not in log
    expected = reference_vectors(folder, TEXTS, "mean", True, 64)
    assert min(cosines(found, expected).min() for found in vectors) >= 0.9995


@pytest.fixture(scope="module")
def manager(shelf: ModelShelf) -> Iterator[Serve]:
    """Two servers that share one GPU."""
    arguments = ["--model", shelf("bert"), "--servers=2", f"--num-replicas={2 * REPLICAS}", "--gpu-assignment=shared"]
    with serving(*arguments, "--health-interval=0.5", "--load-balancing=least_loaded") as started:
        yield started


def test_a_server_that_is_killed_costs_no_client_an_error(manager: Serve) -> None:
    with Load(manager.target) as load:
        load.answers(500)
        os.kill(manager.tritonservers()["server-0"], signal.SIGKILL)
        manager.until(lambda: manager.server("server-0")["restarts"] == 1)
        load.answers(500)
        manager.until(lambda: manager.states() == ["ready", "ready"])
    assert load.errors == []


def test_a_stub_that_is_killed_costs_no_client_an_error(manager: Serve) -> None:
    with Load(manager.target) as load:
        load.answers(500)
        os.kill(manager.stub("server-1", "embedder"), signal.SIGKILL)
        manager.until(lambda: manager.server("server-1")["restarts"] == 1)
        load.answers(500)
        manager.until(lambda: manager.states() == ["ready", "ready"])
    assert load.errors == []
