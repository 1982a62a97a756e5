"""Outputs per token on a GPU, in bfloat16, against transformers in float32 on a CPU."""

from pathlib import Path

import numpy as np
import pytest
from tests.gpu.verified import verified

from tritonembed import EmbeddingClient
from tritonembed_perf.families.registry import load_cases
from tritonembed_perf.server import running_server

pytestmark = pytest.mark.gpu
TEXTS = [" ".join(["some words that fill a sentence"] * n) for n in range(1, 20)]


@pytest.mark.parametrize("name", ["bge_m3", "splade", "colbert_hf_attends", "colbert_modernbert"])
def test_the_direct_executor_serves_them_with_transformers_values(name: str, tmp_path: Path) -> None:
    load_cases()[name].write(tmp_path)
    verified(tmp_path)


def test_requests_in_flight_keep_their_own_rows(tmp_path: Path) -> None:
    """Batches with such outputs and without share the executor's memory."""
    load_cases()["bge_m3"].write(tmp_path)
    with running_server(str(tmp_path), ["--device", "cuda"]) as server, EmbeddingClient(server.target) as client:
        alone = [client.embed([text], outputs="multi_vector").multi_vector[0] for text in TEXTS]
        for _ in range(5):
            client.embed(TEXTS, batch_size=4)
            together = client.embed(TEXTS, outputs="multi_vector", batch_size=7).multi_vector
            for one, other in zip(alone, together, strict=True):
                assert one.shape == other.shape
                assert float(np.einsum("ij,ij->i", one, other).min()) > 0.999
