"""The manager's HTTP side on a real tritonserver, with the clients that people use."""

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import tritonclient.http
from prometheus_client.parser import text_string_to_metric_families
from tests.integration.serve import Serve

from tritonembed import EmbeddingClient

TEXTS = ["a sentence", "zwei Wörter", "", "a much longer sentence that says nothing at all " * 5]
PROBES = ["/v2/health/live", "/v2/health/ready", "/v2/models/embedding/ready", "/v2/models/embedding/versions/1/ready"]
SAME = [
    "/v2",
    *(f"/v2/models/{model}{rest}" for model in ("embedding", "embedder", "tokenizer") for rest in ("", "/config")),
    "/v2/models/embedding/versions/1",
    "/v2/models/embedding/versions/1/config",
    "/v2/models/embedding/stats",
    "/v2/models/stats",
    "/v2/trace/setting",
    "/v2/models/embedding/trace/setting",
    "/v2/logging",
]


@pytest.fixture(scope="module")
def http(manager: Serve) -> Iterator[httpx.Client]:
    """Of the manager."""
    with httpx.Client(base_url=f"http://127.0.0.1:{manager.http_port}", timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def triton(manager: Serve) -> Iterator[httpx.Client]:
    """Of the server behind it."""
    address = manager.until(manager.status)["servers"][0]["http_address"]
    with httpx.Client(base_url=f"http://{address}", timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def expected(manager: Serve) -> Any:
    """The vectors as gRPC has them, and the tokens."""
    with EmbeddingClient(manager.target) as client:
        return client.embed(TEXTS)


def test_the_readmes_block_runs_as_written(manager: Serve) -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    [block] = [block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "OpenAI" in block]
    block = block.replace("localhost:8080", f"127.0.0.1:{manager.http_port}")
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 ")


def test_openais_client_gets_the_vectors_of_grpc(manager: Serve, expected: Any) -> None:
    client = openai.OpenAI(api_key="none", base_url=f"http://127.0.0.1:{manager.http_port}/v1", max_retries=0)
    [model] = client.models.list()
    for encoding in ({}, {"encoding_format": "float"}):
        response = client.embeddings.create(model=model.id, input=TEXTS, **encoding)  # type: ignore[arg-type]
        found = np.array([item.embedding for item in response.data], "<f4")
        assert (found == expected.embeddings).all()
        assert response.usage.prompt_tokens == expected.num_tokens.sum()
    cut = client.embeddings.create(model=model.id, input=TEXTS[0], dimensions=8).data[0].embedding
    assert len(cut) == 8
    assert np.linalg.norm(cut) == pytest.approx(1, abs=1e-5)
    by_ids = client.embeddings.create(model=model.id, input=[[2, 5, 3], [2, 3]])
    assert by_ids.usage.total_tokens == 5
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(model=model.id, input="a", dimensions=65)
    with pytest.raises(openai.BadRequestError, match="token_ids"):
        client.embeddings.create(model=model.id, input=[10_000_000])


def test_tritons_client_gets_the_vectors_of_grpc(manager: Serve, expected: Any) -> None:
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{manager.http_port}") as client:
        tensor = tritonclient.http.InferInput("text", [len(TEXTS), 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[text.encode()] for text in TEXTS], dtype=np.object_))
        answer = client.infer("embedding", [tensor], request_id="mine", parameters={"truncate": "END"})
    rows = [np.frombuffer(row, "<f4") for row in answer.as_numpy("embedding").reshape(-1)]
    assert (np.stack(rows) == expected.embeddings).all()
    assert (answer.as_numpy("num_tokens").reshape(-1) == expected.num_tokens).all()
    assert answer.get_response()["id"] == "mine"


def test_every_route_answers_as_tritons_own(http: httpx.Client, triton: httpx.Client) -> None:
    for path in SAME:
        ours, theirs = http.get(path), triton.get(path)
        found = ours.json()
        # The client's definition of a configuration is newer than the server's.
        found.get("ensemble_scheduling", {}).pop("max_inflight_requests", None)
        assert (ours.status_code, found) == (theirs.status_code, theirs.json()), path
    for path in PROBES:
        assert http.get(path).status_code == triton.get(path).status_code == 200, path
    for path in ("/v2/models/another", "/v2/models/another/config", "/v2/models/another/stats"):
        ours, theirs = http.get(path), triton.get(path)
        assert (ours.status_code, ours.json()) == (theirs.status_code, theirs.json()), path
    assert http.get("/v2/models/another/ready").status_code == triton.get("/v2/models/another/ready").status_code
    assert http.post("/v2/repository/index").json() == triton.post("/v2/repository/index").json()


def test_inference_answers_as_tritons_own(http: httpx.Client, triton: httpx.Client) -> None:
    tensor = {"name": "text", "shape": [2, 1], "datatype": "BYTES", "data": ["one", "two"]}
    binary = {"inputs": [tensor], "parameters": {"binary_data_output": True}, "id": "7"}
    mixed = {"inputs": [tensor], "outputs": [{"name": "num_tokens"}]}
    raw = {"Inference-Header-Content-Length": "0"}
    for sent in ({"json": binary}, {"json": mixed}, {"content": b"one text", "headers": raw}):
        ours, theirs = (client.post("/v2/models/embedding/infer", **sent) for client in (http, triton))  # type: ignore[arg-type]
        assert ours.status_code == theirs.status_code == 200
        sizes = [
            int(answer.headers.get("Inference-Header-Content-Length", len(answer.content))) for answer in (ours, theirs)
        ]
        assert json.loads(ours.content[: sizes[0]]) == json.loads(theirs.content[: sizes[1]])
        assert ours.content[sizes[0] :] == theirs.content[sizes[1] :]
    refused = http.post("/v2/models/embedding/infer", json={"inputs": [tensor]})
    assert refused.status_code == 400
    assert "binary" in refused.json()["error"]


def test_bad_requests_are_as_bad_as_at_triton(http: httpx.Client, triton: httpx.Client) -> None:
    tensor = {"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": ["one"]}
    parameters = {"binary_data_output": True}
    for body in (
        {"inputs": [{**tensor, "name": "words"}]},
        {"inputs": [{**tensor, "shape": [1]}]},
        {"inputs": [{**tensor, "datatype": "INT32", "data": [1]}]},
        {"inputs": [tensor], "parameters": {"truncate": "SIDEWAYS"}},
        {"inputs": [tensor], "outputs": [{"name": "nothing"}]},
        {"inputs": []},
    ):
        ours, theirs = (
            client.post("/v2/models/embedding/infer", json={"parameters": parameters, **body})
            for client in (http, triton)
        )
        assert ours.status_code == theirs.status_code == 400, (ours.text, theirs.text)


def test_one_scrape_has_the_managers_and_the_servers_metrics(manager: Serve, http: httpx.Client, expected: Any) -> None:
    def scrape() -> dict[str, Any]:
        return {family.name: family for family in text_string_to_metric_families(http.get("/metrics").text)}

    found = manager.until(lambda: (families := scrape()) and "tritonembed_requests" in families and families)
    assert {"tritonembed_request_duration_seconds", "tritonembed_server_state"} <= found.keys()
    samples = found["nv_inference_request_success"].samples
    assert {(sample.labels["server"], sample.labels["model"]) for sample in samples} >= {("server-0", "embedder")}


def test_health_and_the_page_are_there(http: httpx.Client) -> None:
    assert http.get("/health").json() == {"status": "ok"}
    assert "<h1>tritonembed</h1>" in http.get("/").text
    points = http.get("/status/history").json()["points"]
    assert points[-1]["servers"].keys() == {"server-0"}


def test_dimensions_that_the_model_lacks_are_named(http: httpx.Client) -> None:
    answer = http.post("/v1/embeddings/", json={"input": "a", "dimensions": 65})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "dimensions"
    assert "65 is over the model's 64" in error["message"]


def test_a_client_that_closes_its_half_gets_its_answer(manager: Serve) -> None:
    body = b'{"input": "a sentence"}'
    with socket.create_connection(("127.0.0.1", manager.http_port), timeout=30) as client:
        client.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        client.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert b"HTTP/1.1 200 OK\r\n" in answer
    assert b'"embedding"' in answer
