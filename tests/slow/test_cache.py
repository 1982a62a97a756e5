"""A model that is loaded anew, from other weights, never answers with vectors of the old one."""

from pathlib import Path

from tests.integration.serve import running_server
from tritonclient.grpc import InferenceServerClient

from tritonembed import EmbeddingClient
from tritonembed_perf import models

TEXTS = ["bread is baked in an oven", "the train is late"]


def test_a_changed_model_never_answers_from_the_cache_of_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    models.write_bert(folder, layers=2, hidden=64, heads=2, intermediate=128)
    options = ["--device=cpu", "--workers=1", "--no-reference"]
    caching = ["--cache-bytes=1000000", "--model-control-mode=explicit"]
    with (
        running_server(str(folder), [*options, *caching]) as server,
        EmbeddingClient(server.target) as client,
        InferenceServerClient(server.target) as triton,
    ):
        old = client.embed(TEXTS).embeddings
        assert client.embed(TEXTS).embeddings.tobytes() == old.tobytes()
        models.write_bert(folder, layers=2, hidden=64, heads=2, intermediate=128, seed=7)
        triton.unload_model("embedder")
        triton.load_model("embedder")
        new = client.embed(TEXTS).embeddings
    with running_server(str(folder), options) as server, EmbeddingClient(server.target) as client:
        assert new.tobytes() == client.embed(TEXTS).embeddings.tobytes()
    assert new.tobytes() != old.tobytes()
