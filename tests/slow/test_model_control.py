"""Explicit model control on a real model: unload frees its memory, and load serves the same vectors."""

from collections.abc import Callable

import numpy as np
import pytest
from tests.integration.test_engine_metrics import TEXTS, until
from tests.processes import children, model_stubs
from tritonclient.grpc import InferenceServerClient

from tritonembed import EmbeddingClient, TritonEmbedError
from tritonembed_manager.server.process import Process, family, process_table
from tritonembed_perf.server import RunningServer, server_memory_mib

MODELS = ("embedding", "embedding_chunks", "tokenizer", "embedder")


def test_unload_frees_the_models_memory_and_load_serves_the_same_vectors(
    second_server: Callable[[], RunningServer],
) -> None:
    controlled = second_server()
    with EmbeddingClient(controlled.target) as client, InferenceServerClient(controlled.target) as triton:
        vectors = client.embed(TEXTS).embeddings
        [triton_pid] = [process.pid for process in processes(controlled) if process.name == "tritonserver"]
        loaded, stubs = server_memory_mib(triton_pid), len(model_stubs(processes(controlled)))
        for model in MODELS:
            triton.unload_model(model)
        until(lambda: not children(triton_pid))
        assert "Segfault" not in controlled.read_log()
        unloaded = server_memory_mib(triton_pid)
        # The rest is Triton itself. A process with torch and vLLM takes several hundred MiB.
        assert unloaded < loaded / 2
        with pytest.raises(TritonEmbedError):
            client.embed(["gone"])
        for model in reversed(MODELS):
            triton.load_model(model)
        assert np.abs(client.embed(TEXTS).embeddings - vectors).max() <= 1e-6
        assert len(model_stubs(processes(controlled))) == stubs
    assert controlled.process.poll() is None


def processes(server: RunningServer) -> list[Process]:
    return family(server.process.pid, process_table())
