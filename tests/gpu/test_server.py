"""The committed model repository on a GPU: Triton with its own flags, two replicas, bf16."""

import os
import re
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from tests.integration.reference import cosines, reference_spans, reference_vectors
from tests.models import ModelShelf

from tritonembed import EmbeddingClient
from tritonembed_perf.server import free_ports, running_server

pytestmark = pytest.mark.gpu
TEXTS = [" ".join(["some words that fill a sentence"] * n) for n in range(1, 20)]


@pytest.mark.parametrize(("name", "pooling", "maximum"), [("bert", "mean", 64), ("bert-cls", "cls", 512)])
def test_bf16_vectors_are_those_of_float32_transformers(
    shelf: ModelShelf, name: str, pooling: str, maximum: int
) -> None:
    folder = shelf(name)
    with running_server(str(folder), ["--device", "cuda"]) as server, EmbeddingClient(server.target) as client:
        vectors = client.embed(TEXTS).embeddings
        if pooling == "mean":
            # More spans than a batch has sentences.
            spans = [[(0, 10), (10, len(text))] * 2 for text in TEXTS[:8]]
            parts = client.embed_spans(TEXTS[:8], spans).embeddings
            assert cosines(parts, reference_spans(folder, TEXTS[:8], spans)[0]).min() >= 0.9995
        log = server.read_log()
    expected = reference_vectors(folder, TEXTS, pooling, name == "bert", maximum)
    assert cosines(vectors, expected).min() >= 0.9995
    assert "the scheduler executor serves" not in log


def test_fp8_vectors_are_near_those_of_float32_transformers(shelf: ModelShelf) -> None:
    """e4m3's three bits of mantissa allow 0.995. vLLM's own products reach the same (perf/README.md)."""
    folder = shelf("bert-calm")
    command = ["--device", "cuda", "--quantization", "fp8"]
    with running_server(str(folder), command) as server, EmbeddingClient(server.target) as client:
        vectors = client.embed(TEXTS).embeddings
        log = server.read_log()
    assert cosines(vectors, reference_vectors(folder, TEXTS, "mean", True, 512)).min() >= 0.995
    assert re.search(r"kernels: .*\bfp8 in 1\b", log), log
    assert "the scheduler executor serves" not in log
    assert "vLLM's kernels serve" not in log


def test_the_committed_repository_loads_unchanged(shelf: ModelShelf, tmp_path: Path) -> None:
    """Runs `tritonserver --model-repository model_repository` with the model in TRITONEMBED_MODEL."""
    from tritonembed_manager.server.tritonserver import find_tritonserver

    grpc_port, http_port, metrics_port = free_ports(3)
    found = find_tritonserver(None, tmp_path)
    command = [str(found.binary), "--model-repository", "model_repository"]
    if found.backends:
        command += ["--backend-directory", str(found.backends)]
    command += ["--grpc-port", str(grpc_port), "--http-port", str(http_port), "--metrics-port", str(metrics_port)]
    command += ["--grpc-address", "127.0.0.1", "--http-address", "127.0.0.1"]
    environment = {**os.environ, **found.environment, "TRITONEMBED_MODEL": str(shelf("bert"))}
    log = (tmp_path / "log").open("w+")
    server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        with EmbeddingClient(f"127.0.0.1:{grpc_port}") as client:
            while server.poll() is None and not client.is_ready(timeout=5):
                time.sleep(1)
            assert server.poll() is None, log.seek(0) or log.read()[-3000:]
            vectors, num_tokens = client.embed(TEXTS)
    finally:
        server.terminate()
        server.wait(60)
    assert vectors.shape == (len(TEXTS), 64)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    assert num_tokens[0] == 8
