"""`serve` with two models launches servers for each: one model's death disturbs no request for the other."""

import json
import os
import signal
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.integration.serve import Serve, serving
from tests.models import ModelShelf

from tritonembed import EmbeddingClient

CHEAP = ("--num-replicas=1", "--tokenizer-instances=1", "--executor=transformers", "--no-reference", "--device=cpu")


@pytest.fixture(scope="module")
def manager(shelf: ModelShelf) -> Iterator[Serve]:
    models = ("--model", f"minilm={shelf('bert')}", "--model", f"cls={shelf('bert-cls')}")
    with serving(*models, *CHEAP, "--health-interval=0.5") as started:
        yield started


def test_a_model_whose_server_dies_is_restarted_alone(manager: Serve) -> None:
    assert {server["id"]: server["model"] for server in manager.status()["servers"]} == {
        "server-0": "minilm",
        "cls@server-1": "cls",
    }
    is_over, answered = threading.Event(), []

    def send() -> None:
        with EmbeddingClient(manager.target, model="minilm") as client:
            while not is_over.is_set():
                answered.append(len(client.embed(["a few words"]).embeddings))

    sending = threading.Thread(target=send)
    sending.start()
    try:
        os.kill(manager.stub("cls@server-1", "cls_embedder"), signal.SIGKILL)
        manager.until(lambda: manager.server("cls@server-1")["restarts"] == 1)
        manager.until(lambda: manager.server("cls@server-1")["state"] == "ready")
    finally:
        is_over.set()
        sending.join()
    # An error would have ended the thread before the other model was back.
    before = len(answered)
    assert before > 0
    status = manager.status()
    assert (status["totals"]["client_errors"], status["totals"]["service_errors"]) == ({}, {})
    assert manager.server("server-0")["restarts"] == 0
    with EmbeddingClient(manager.target, model="cls") as client:
        assert len(client.embed(["a few words"]).embeddings) == 1


def test_a_start_error_names_its_model(shelf: ModelShelf, tmp_path: Path) -> None:
    manager = Serve("--model", str(shelf("bert")), "--model", f"broken={tmp_path}", "--device=cpu")
    try:
        assert manager.process.wait(timeout=60) == 2
        last = manager.log().splitlines()[-1]
        assert "broken: --model: " in last
    finally:
        manager.end()


def test_a_request_loads_its_model_in_the_place_of_the_least_recently_used_one(shelf: ModelShelf) -> None:
    models = ("--model", f"minilm={shelf('bert')}", "--model", f"cls={shelf('bert-cls')}")
    with serving(*models, *CHEAP, "--max-loaded=1") as manager:
        assert manager.states() == ["ready", "unloaded"]
        assert list(manager.tritonservers()) == ["server-0"]
        with EmbeddingClient(manager.target) as client:
            before = client.embed(["a few words"]).embeddings
        status, waited = vector_of(manager, "cls")
        assert status == 200
        assert waited > 1
        assert manager.states() == ["unloaded", "ready"]
        assert list(manager.tritonservers()) == ["cls@server-1"]
        assert vector_of(manager, "cls") == (200, None)
        with EmbeddingClient(manager.target) as client:
            np.testing.assert_allclose(client.embed(["a few words"], timeout=120).embeddings, before, atol=1e-6)
        assert manager.states() == ["ready", "unloaded"]
        assert manager.server("server-0")["restarts"] == 0


def vector_of(manager: Serve, model: str) -> tuple[int, float | None]:
    """The status of a request for a vector, and how long it waited for its model."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{manager.http_port}/v1/embeddings",
        json.dumps({"input": "a few words", "model": model}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        waited = answer.headers["x-model-load-seconds"]
        return answer.status, None if waited is None else float(waited)
