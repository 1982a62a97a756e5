"""Every kind of model on a real server: the ensemble's vectors equal transformers'."""

import pytest
from tests.integration.test_vectors import KINDS, check_executor, check_vectors_of_a_server
from tests.models import ModelShelf

from tritonembed import EmbeddingClient
from tritonembed_perf.server import running_server

MORE_KINDS = [("roberta", "mean", True), ("xlm-roberta", "cls", True)]


@pytest.mark.parametrize(("name", "pooling", "normalize"), [*KINDS, *MORE_KINDS])
def test_every_kind_of_model_gives_the_vectors_of_transformers(
    shelf: ModelShelf, name: str, pooling: str, normalize: bool
) -> None:
    folder = shelf(name)
    # The test computes transformers' vectors itself, so the server does not have to.
    options = ["--device", "cpu", "--workers", "1", "--no-reference"]
    with running_server(str(folder), options) as server, EmbeddingClient(server.target) as client:
        check_vectors_of_a_server(client, name, folder, pooling, normalize)
        check_executor(server.read_log())
