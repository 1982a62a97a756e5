"""Two models in one real Triton server, and a manager in front of it: right vectors of each, on every API."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import pytest
from sentence_transformers import SentenceTransformer
from tests.integration.serve import Serve, running_server, serving
from tests.models import ModelShelf

from tritonembed import EmbeddingClient, InvalidArgumentError, ModelNotFoundError

TEXTS = ["a few words", "the cat sat on the mat", "x"]
CLOSE = 1e-5


@pytest.fixture(scope="module")
def folders(shelf: ModelShelf) -> dict[str, Path]:
    """The models' folders, by their names for clients: mean pooling and cls pooling."""
    return {"minilm": shelf("bert"), "cls": shelf("bert-cls")}


@pytest.fixture(scope="module")
def manager(folders: dict[str, Path]) -> Iterator[Serve]:
    """A manager in front of one server with both models."""
    more = ["--model", f"cls={folders['cls']}", "--device", "cpu", "--workers", "1"]
    # Imported faster than vLLM.
    more += ["--executor", "transformers", "--no-reference"]
    with (
        running_server(str(folders["minilm"]), more) as server,
        serving("--server", server.target, "--model=minilm", "--model=cls") as started,
    ):
        yield started


@pytest.mark.parametrize("name", ["minilm", "cls"])
def test_each_model_gives_its_own_right_vectors(manager: Serve, folders: dict[str, Path], name: str) -> None:
    oracle = SentenceTransformer(str(folders[name]), device="cpu")
    wanted = oracle.encode(TEXTS)
    ids = [oracle.tokenizer(text)["input_ids"] for text in TEXTS]
    with EmbeddingClient(manager.target, model=name) as client:
        found = client.embed(TEXTS)
        np.testing.assert_allclose(found.embeddings, wanted, atol=CLOSE)
        np.testing.assert_allclose(client.embed_tokens(ids).embeddings, wanted, atol=CLOSE)
        space = client.info().embedding_space
        assert found.embedding_space == space
    over_http = openai.OpenAI(base_url=f"http://127.0.0.1:{manager.http_port}/v1", api_key="none")
    answer = over_http.embeddings.create(model=name, input=TEXTS)
    assert answer.model == name
    np.testing.assert_allclose([item.embedding for item in answer.data], wanted, atol=CLOSE)
    listed = {model.id: model.model_dump() for model in over_http.models.list()}
    assert (listed[name]["dimensions"], listed[name]["task"]) == (wanted.shape[1], "embed")
    assert listed[name]["max_model_len"] == oracle.max_seq_length


def test_each_model_has_an_embedding_space_of_its_own(manager: Serve) -> None:
    spaces = {}
    for name in ("minilm", "cls"):
        with EmbeddingClient(manager.target, model=name) as client:
            spaces[name] = client.embed(["x"]).embedding_space
    assert spaces["minilm"] != spaces["cls"]
    with EmbeddingClient(manager.target, model="cls") as client, pytest.raises(InvalidArgumentError, match="space"):
        client.embed(["x"], embedding_space=spaces["minilm"])


def test_a_model_that_the_server_does_not_have_is_not_found(manager: Serve) -> None:
    with EmbeddingClient(manager.target, model="other") as client, pytest.raises(ModelNotFoundError):
        client.embed(["x"])
