"""Replicas that share a GPU use their server's own MPS daemon, which ends with the server, however that ends."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tests.integration.reference import cosines, reference_vectors
from tests.models import ModelShelf

from tritonembed import EmbeddingClient
from tritonembed_manager.server.process import Process, family, process_table
from tritonembed_perf.server import running_server

pytestmark = pytest.mark.gpu
SHARING = ["--device", "cuda", "--replicas", "2", "--tokenizer-instances", "1"]
MPS = ("nvidia-cuda-mps", "nvidia-cuda-mp")
TEXTS = [" ".join(["some words that fill a sentence"] * n) for n in range(1, 20)]


def members(manager: int) -> list[Process]:
    return family(manager, process_table())


def daemons(processes: list[Process]) -> list[Process]:
    return [process for process in processes if process.name.startswith(MPS)]


def wait_until_gone(processes: list[Process]) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        table = process_table()
        left = [p for p in processes if p.pid in table and table[p.pid].started == p.started and table[p.pid].alive]
        if not left:
            return
        time.sleep(0.1)
    raise AssertionError(f"still there: {[process.name for process in left]}")


def test_two_replicas_answer_through_a_daemon_and_nothing_is_left(shelf: ModelShelf) -> None:
    folder = shelf("bert")
    with running_server(str(folder), SHARING) as server, EmbeddingClient(server.target) as client:
        started = members(server.process.pid)
        vectors = [client.embed(TEXTS).embeddings for _ in range(8)]
        log = server.read_log()
    # The daemon, and its server process, which the first context starts.
    assert len(daemons(started)) == 2, [process.name for process in started]
    assert "MPS does not start" not in log
    assert "the scheduler executor serves" not in log
    expected = reference_vectors(folder, TEXTS, "mean", True, 64)
    assert min(cosines(found, expected).min() for found in vectors) >= 0.9995
    assert server.process.returncode == 0
    wait_until_gone(started)


def test_with_no_mps_there_is_no_daemon(shelf: ModelShelf) -> None:
    with running_server(str(shelf("bert")), [*SHARING, "--no-mps"]) as server:
        assert not daemons(members(server.process.pid))


def test_a_killed_stub_ends_the_server_and_its_daemon(shelf: ModelShelf) -> None:
    with running_server(str(shelf("bert")), SHARING) as server, EmbeddingClient(server.target) as client:
        client.embed(TEXTS)
        started = members(server.process.pid)
        stubs = [process for process in started if "triton_python" in process.name]
        os.kill(stubs[-1].pid, signal.SIGKILL)
        assert server.process.wait(60) != 0
    wait_until_gone(started)


def test_a_killed_manager_leaves_nothing_and_the_next_server_starts(shelf: ModelShelf) -> None:
    with running_server(str(shelf("bert")), SHARING) as server:
        started = members(server.process.pid)
        server.process.kill()
        server.process.wait()
        wait_until_gone(started)
    with running_server(str(shelf("bert")), SHARING) as server, EmbeddingClient(server.target) as client:
        assert len(daemons(members(server.process.pid))) == 2
        assert client.embed(TEXTS).embeddings.shape[0] == len(TEXTS)


def test_a_daemon_of_the_users_own_is_used_and_left_alone(
    shelf: ModelShelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("CUDA_MPS_LOG_DIRECTORY", str(tmp_path))
    daemon = subprocess.Popen(["nvidia-cuda-mps-control", "-f"], stdin=subprocess.DEVNULL)
    try:
        with running_server(str(shelf("bert")), SHARING) as server, EmbeddingClient(server.target) as client:
            client.embed(TEXTS)
            assert not daemons(members(server.process.pid))
        assert daemon.poll() is None
    finally:
        daemon.terminate()
        daemon.wait(30)
