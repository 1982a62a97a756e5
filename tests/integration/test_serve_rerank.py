"""An embedding model and a reranker in one real Triton server, and a manager in front: scores are CrossEncoder's."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from tests.integration.serve import Serve, running_server, serving
from tests.integration.test_bad_input import request
from tests.integration.test_engine_metrics import until
from tests.models import ModelShelf
from tritonclient.grpc import service_pb2_grpc

from tritonembed import EmbeddingClient, InvalidArgumentError, ModelNotFoundError
from tritonembed.cli.app import run
from tritonembed_perf.families import rerankers
from tritonembed_perf.server import RunningServer

QUERY = "how do I bake bread?"
TEXTS = ["Bread is baked in an oven.", "The train is late.", "naïve café 中文", "bread " * 300, ""]
CLOSE = 2e-6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BERT with one label, random weights."""
    folder = tmp_path_factory.mktemp("reranker") / "ranker"
    folder.mkdir()
    rerankers.ce_bert(folder)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path, shelf: ModelShelf) -> Iterator[RunningServer]:
    """The reranker is the direct executor's, and compared with transformers at load."""
    more = ["--model", f"ranker={folder}", "--device", "cpu", "--workers", "1", "--cache-bytes", str(1 << 20)]
    with running_server(str(shelf("bert")), more) as running:
        yield running


@pytest.fixture(scope="module")
def manager(server: RunningServer) -> Iterator[Serve]:
    options = ("--server", server.target, "--model=minilm", "--model=ranker=score")
    with serving(*options) as started:
        yield started


@pytest.fixture(scope="module")
def oracle(folder: Path) -> CrossEncoder:
    return CrossEncoder(str(folder), device="cpu")


@pytest.fixture(params=["server", "manager"])
def client(request: pytest.FixtureRequest, server: RunningServer, manager: Serve) -> Iterator[EmbeddingClient]:
    """Of the server itself, and through the manager."""
    target = server.target if request.param == "server" else manager.target
    with EmbeddingClient(target, score_model="ranker") as opened:
        yield opened


def test_scores_are_those_of_cross_encoder(client: EmbeddingClient, oracle: CrossEncoder) -> None:
    wanted = oracle.predict([(QUERY, text) for text in TEXTS])
    found = client.score(QUERY, TEXTS, batch_size=2)
    np.testing.assert_allclose(found.scores[:, 0], wanted, atol=CLOSE)
    assert found.labels == ("LABEL_0",)
    assert found.num_tokens[3] == oracle.max_seq_length
    logits = oracle.predict([(QUERY, text) for text in TEXTS], activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(client.score(QUERY, TEXTS, activation="none").scores[:, 0], logits, atol=CLOSE)
    best = client.rerank(QUERY, TEXTS, top_n=2)
    assert best.indices.tolist() == np.argsort(-wanted, kind="stable")[:2].tolist()


def test_the_same_server_embeds_too(client: EmbeddingClient) -> None:
    found = client.embed(["a text"])
    assert found.embeddings.shape[0] == 1
    scores = client.score(QUERY, ["a text"])
    assert scores.scores.shape == (1, 1)


def test_a_pair_that_comes_again_has_the_same_score_from_the_cache(server: RunningServer) -> None:
    with EmbeddingClient(server.target, score_model="ranker") as client:
        [first] = client.score("a query that comes twice", ["a text"]).scores
        [again] = client.score("a query that comes twice", ["a text"]).scores
        [logit] = client.score("a query that comes twice", ["a text"], activation="none").scores
    assert first.tobytes() == again.tobytes()
    np.testing.assert_allclose(1 / (1 + np.exp(-logit)), first, rtol=1e-6)
    until(lambda: _hits_of(server, "ranker") >= 2)


def _hits_of(server: RunningServer, model: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return sum(
        float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("tritonembed_cache_hits") and model in line
    )


def test_bad_pairs_are_refused_in_one_line_and_the_next_are_answered(client: EmbeddingClient) -> None:
    with pytest.raises(InvalidArgumentError, match="query: sentence 0 leaves no room for a text"):
        client.score("bread " * 300, TEXTS)
    with pytest.raises(InvalidArgumentError, match="text: sentence 3 has, with its query, more tokens"):
        client.score(QUERY, TEXTS, truncate="NONE")
    with pytest.raises(InvalidArgumentError, match="instruction: the model has no template"):
        client.score(QUERY, TEXTS, instruction="x")
    assert client.score(QUERY, TEXTS).scores.shape == (len(TEXTS), 1)


def pairs(queries: list[bytes], texts: list[bytes], model: str = "ranker", **parameters: object) -> Any:
    """A request of KServe's."""
    made, more = request(queries, model=model, name="query", **parameters), request(texts)
    made.inputs.extend(more.inputs)
    made.raw_input_contents.extend(more.raw_input_contents)
    return made


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: pairs([b""], [b"a"]), "query: sentence 0 is empty"),
        (lambda: pairs([b"q", b""], [b"a", b"b"]), "query: sentence 1 is empty"),
        (lambda: pairs([b"q\xff"], [b"a"]), "query: sentence 0 is not valid UTF-8"),
        (lambda: pairs([b"q"], [b"\xff"]), "text: sentence 0 is not valid UTF-8"),
        (lambda: pairs([b"q"] * 1025, [b"a"] * 1025), "1024"),
        (lambda: request([b"a"] * 1025, model="ranker_classify"), "1024"),
        (lambda: pairs([b"q"] * 2, [b"a"]), "batch size does not match"),
        (lambda: pairs([b"q"], [b"a"], activation="relu"), "activation: must be one of none, sigmoid, softmax"),
        (lambda: pairs([b"q"], [b"a"], top_n=0), "'top_n': unknown parameter of a reranker"),
        (lambda: pairs([b"q"], [b"a"], dimensions=2), "'dimensions': unknown parameter of a reranker"),
        # A reranker that is asked to embed, and the other way round.
        (lambda: request([b"a"], model="ranker"), "missing required input(s) ['query']"),
        (lambda: pairs([b"q"], [b"a"], model="embedding"), "Got input(s) ['text','query']"),
        (lambda: request([b"a"], model="embedding", activation="none"), "'activation': unknown parameter"),
    ],
)
@pytest.mark.parametrize("way", ["server", "manager"])
def test_bad_pairs_over_grpc_are_one_line_and_the_next_are_answered(
    server: RunningServer, manager: Serve, way: str, make: Callable[[], Any], reason: str
) -> None:
    target = server.target if way == "server" else manager.target
    with grpc.insecure_channel(target) as channel:
        infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        with pytest.raises(grpc.RpcError) as caught:
            infer(make(), timeout=60)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert reason in caught.value.details()
        assert "\n" not in caught.value.details()
        found = infer(pairs([b"q"], [b"a"]), timeout=60)
        assert "score" in {output.name for output in found.outputs}


@pytest.mark.parametrize(
    ("model", "inputs", "reason"),
    [
        ("ranker", {"query": [""], "text": ["a"]}, "query: sentence 0 is empty"),
        ("ranker", {"query": ["q"] * 1025, "text": ["a"] * 1025}, "1024"),
        ("ranker", {"text": ["a"]}, "missing required input(s) ['query']"),
        ("minilm", {"query": ["q"], "text": ["a"]}, "['text','query']"),
    ],
)
def test_bad_pairs_over_kserves_http_are_400(manager: Serve, model: str, inputs: Any, reason: str) -> None:
    tensors = [
        {"name": name, "datatype": "BYTES", "shape": [len(rows), 1], "data": rows} for name, rows in inputs.items()
    ]
    body = json.dumps({"inputs": tensors, "parameters": {"as": "FP32"} if model == "minilm" else {}}).encode()
    asked = urllib.request.Request(f"http://127.0.0.1:{manager.http_port}/v2/models/{model}/infer", body)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(asked, timeout=60)
    assert caught.value.code == 400
    assert reason in json.load(caught.value)["error"]


def test_a_model_does_only_what_it_is_for(server: RunningServer) -> None:
    with EmbeddingClient(server.target, model="ranker") as client, pytest.raises(InvalidArgumentError):
        client.embed(["a text"])
    with EmbeddingClient(server.target) as client, pytest.raises(ModelNotFoundError):
        client.rerank(QUERY, TEXTS)


def test_scores_come_as_numbers_in_kserves_json(manager: Serve, oracle: CrossEncoder) -> None:
    body = {
        "inputs": [
            {"name": name, "datatype": "BYTES", "shape": [2, 1], "data": rows}
            for name, rows in (("query", [QUERY] * 2), ("text", TEXTS[:2]))
        ]
    }
    url = f"http://127.0.0.1:{manager.http_port}/v2/models/ranker/infer"
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=60) as answer:
        outputs = {output["name"]: output for output in json.load(answer)["outputs"]}
    assert outputs["score"]["datatype"] == "FP32"
    wanted = oracle.predict([(QUERY, text) for text in TEXTS[:2]])
    np.testing.assert_allclose(outputs["score"]["data"], wanted, atol=CLOSE)


def test_the_manager_lists_its_task(manager: Serve) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{manager.http_port}/v1/models", timeout=60) as answer:
        listed = {model["id"]: model for model in json.load(answer)["data"]}
    assert listed["minilm"]["task"] == "embed"
    assert (listed["ranker"]["task"], listed["ranker"]["dimensions"]) == ("score", None)


def test_a_reranker_asked_to_embed_says_what_it_does(manager: Serve) -> None:
    body = json.dumps({"model": "ranker", "input": "a text"}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{manager.http_port}/v1/embeddings", body)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=60)
    assert caught.value.code == 400
    message = json.load(caught.value)["error"]["message"]
    assert message == "model: ranker scores pairs of a query and a text; it does not embed"


def test_the_command_ranks(server: RunningServer, capsys: pytest.CaptureFixture[str], oracle: CrossEncoder) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["rerank", QUERY, *TEXTS[:2], "--model", "ranker", "--server", server.target, "--json"])
    assert ended.value.code == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    wanted = oracle.predict([(QUERY, text) for text in TEXTS[:2]])
    np.testing.assert_allclose([line["score"] for line in lines], sorted(wanted, reverse=True), atol=CLOSE)
