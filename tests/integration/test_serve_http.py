"""The manager's HTTP port with a real tritonserver, and existing clients."""

import json
import re
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import openai
import pytest
import tritonclient.http
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from prometheus_client.parser import text_string_to_metric_families
from tests.integration.serve import Serve
from transformers import AutoTokenizer

from tritonembed import EmbeddingClient
from tritonembed_protocol.types import EmbeddingType

DOCS = Path(__file__).resolve().parents[2] / "docs"
TEXTS = ["a sentence", "zwei Wörter", "", "a much longer sentence that says nothing at all " * 5]
PROBES = ["/v2/health/live", "/v2/health/ready", "/v2/models/embedding/ready", "/v2/models/embedding/versions/1/ready"]
MODELS = ("embedding", "embedding_chunks", "embedder", "tokenizer")
SAME = [
    "/v2",
    *(f"/v2/models/{model}{rest}" for model in MODELS for rest in ("", "/config")),
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
    """A client of the manager."""
    with httpx.Client(base_url=f"http://127.0.0.1:{manager.http_port}", timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def triton(manager: Serve) -> Iterator[httpx.Client]:
    """A client of the manager's server."""
    address = manager.until(manager.status)["servers"][0]["http_address"]
    with httpx.Client(base_url=f"http://{address}", timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def expected(manager: Serve) -> Any:
    """The vectors and numbers of tokens over gRPC."""
    with EmbeddingClient(manager.target) as client:
        return client.embed(TEXTS)


@pytest.mark.parametrize(("client", "printed"), [("OpenAI", "2 "), ("AzureOpenAI", "2\n")])
def test_a_python_block_of_the_docs_runs_as_written(
    manager: Serve, capsys: pytest.CaptureFixture[str], client: str, printed: str
) -> None:
    text = (DOCS / "guides" / "openai.md").read_text(encoding="utf-8")
    [block] = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if f"import {client}\n" in block]
    exec(block.replace("localhost:8080", f"127.0.0.1:{manager.http_port}"), {})
    assert capsys.readouterr().out.startswith(printed)


@pytest.mark.parametrize(
    ("page", "marks"),
    [
        ("../README.md", ['"embedding":[']),
        ("quick-start.md", ['"embedding":[']),
        ("reference/http.md", ['"binary_data_size"', '"datatype":"FP32","shape":[2,']),
    ],
)
def test_the_curl_lines_of_the_docs_are_answered(http: httpx.Client, page: str, marks: list[str]) -> None:
    lines = re.findall(r"^(curl .*?)\n```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(lines) == len(marks)
    for line, mark in zip(lines, marks, strict=True):
        words = shlex.split(line)
        [address] = [word for word in words if word.startswith("http://localhost:8080/")]
        headers = dict(words[at + 1].split(": ") for at, word in enumerate(words) if word == "-H")
        answer = http.post(urlsplit(address).path, content=words[words.index("-d") + 1], headers=headers)
        assert answer.status_code == 200, answer.text
        assert mark.encode() in answer.content


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
    long = [" ".join(["word"] * 40) + "."] * 3
    parts = client.embeddings.create(model=model.id, input=long)
    # Chunks of equal lengths; the mean of equal vectors is that vector.
    whole = client.embeddings.create(model=model.id, input=" ".join(long), extra_body={"truncate": "CHUNK"})
    assert np.allclose(whole.data[0].embedding, parts.data[0].embedding, atol=1e-6)
    assert whole.usage.total_tokens == parts.usage.total_tokens == 3 * 43
    with_instruction = client.embeddings.create(model=model.id, input="cats", extra_body={"instruction": "Find pets"})
    as_text = client.embeddings.create(model=model.id, input="Instruct: Find pets\nQuery: cats")
    assert np.allclose(with_instruction.data[0].embedding, as_text.data[0].embedding, atol=1e-6)
    assert with_instruction.usage == as_text.usage
    by_ids = client.embeddings.create(model=model.id, input=[[101, 5, 102], [101, 102]])
    assert by_ids.usage.total_tokens == 5
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(model=model.id, input="a", dimensions=65)
    with pytest.raises(openai.BadRequestError, match="token_ids"):
        client.embeddings.create(model=model.id, input=[101, 10_000_000, 102])
    # `hello world` in the ids of OpenAI's tokenizer.
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        client.embeddings.create(model=model.id, input=[[15339, 1917]])


def test_hugging_faces_client_gets_the_vectors_of_grpc(manager: Serve, expected: Any) -> None:
    client = InferenceClient(f"http://127.0.0.1:{manager.http_port}")
    assert (client.feature_extraction(TEXTS) == expected.embeddings).all()
    scores = client.sentence_similarity(TEXTS[0], other_sentences=TEXTS[1:])
    assert np.allclose(scores, expected.embeddings[1:] @ expected.embeddings[0], atol=1e-6)
    with pytest.raises(HfHubHTTPError) as caught:
        client.feature_extraction("word " * 100, truncate=False)
    assert caught.value.response.status_code == 413
    assert caught.value.response.json()["error_type"] == "Validation"


def test_tokens_and_texts_of_ids_are_transformers(http: httpx.Client, model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    found = http.post("/tokenize", json={"inputs": TEXTS}).json()
    assert [[token["id"] for token in tokens] for tokens in found] == tokenizer(TEXTS).input_ids
    assert (found[0][0]["text"], found[0][0]["special"], found[0][1]["start"]) == ("[CLS]", True, 0)
    texts = http.post("/decode", json={"ids": tokenizer(TEXTS[:2]).input_ids}).json()
    assert texts == tokenizer.batch_decode(tokenizer(TEXTS[:2]).input_ids, skip_special_tokens=True)
    refused = http.post("/decode", json={"ids": [10_000_000]})
    assert (refused.status_code, refused.json()["error_type"]) == (422, "Validation")
    assert "outside the vocabulary" in refused.json()["error"]


def test_coheres_types_are_those_of_the_engine(manager: Serve, http: httpx.Client) -> None:
    kinds: list[EmbeddingType] = ["float", "int8", "uint8", "binary", "ubinary"]
    body = {"texts": TEXTS, "input_type": "search_query", "embedding_types": kinds, "output_dimension": 16}
    found = http.post("/v2/embed", json=body).json()["embeddings"]
    with EmbeddingClient(manager.target) as client:
        for kind in kinds:
            rows = client.embed(TEXTS, input_type="query", dimensions=16, embedding_type=kind).embeddings
            assert (np.array(found[kind], rows.dtype) == rows).all(), kind
            body = {"input": TEXTS, "input_type": "search_query", "embedding_type": kind, "dimensions": 16}
            data = http.post("/v1/embeddings", json=body).json()["data"]
            assert (np.array([item["embedding"] for item in data], rows.dtype) == rows).all(), kind


def test_numbers_in_kserves_json_are_the_vectors_of_grpc(http: httpx.Client, expected: Any) -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [len(TEXTS), 1], "data": TEXTS}
    outputs = [{"name": "embedding_fp32"}, {"name": "num_tokens"}]
    answer = http.post("/v2/models/embedding/infer", json={"inputs": [tensor], "outputs": outputs}).json()
    found = {output["name"]: output for output in answer["outputs"]}
    numbers = found["embedding_fp32"]
    assert (np.array(numbers["data"], "<f4").reshape(numbers["shape"]) == expected.embeddings).all()
    assert found["num_tokens"]["data"] == expected.num_tokens.tolist()
    sent = {"inputs": [{"name": "input_text", "datatype": "BYTES", "shape": [len(TEXTS)], "data": TEXTS}]}
    [only] = http.post("/triton/embeddings", json=sent).json()["outputs"]
    assert (np.array(only["data"], "<f4").reshape(only["shape"]) == expected.embeddings).all()


def test_chunks_come_through_the_endpoint(manager: Serve) -> None:
    text = "A sentence that says little. " * 40
    with EmbeddingClient(manager.target) as client:
        found = client.embed_chunks([text, "short"])
        parts = client.embed([*(text[start:end] for start, end in found.offsets[:-1]), "short"])
    assert len(parts.embeddings) > 4
    assert np.abs(found.embeddings - parts.embeddings).max() <= 1e-6
    assert (found.num_tokens == parts.num_tokens).all()


def test_tritons_client_gets_the_vectors_of_grpc(manager: Serve, expected: Any) -> None:
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{manager.http_port}") as client:
        tensor = tritonclient.http.InferInput("text", [len(TEXTS), 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[text.encode()] for text in TEXTS], dtype=np.object_))
        answer = client.infer("embedding", [tensor], request_id="mine", parameters={"truncate": "END"})
    rows = [np.frombuffer(row, "<f4") for row in answer.as_numpy("embedding").reshape(-1)]
    assert (np.stack(rows) == expected.embeddings).all()
    assert (answer.as_numpy("num_tokens").reshape(-1) == expected.num_tokens).all()
    assert answer.get_response()["id"] == "mine"


def test_every_route_answers_like_tritons_own(http: httpx.Client, triton: httpx.Client) -> None:
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


def test_a_folder_is_named_by_its_last_part(http: httpx.Client, triton: httpx.Client, model: Path) -> None:
    assert [listed["id"] for listed in http.get("/v1/models").json()["data"]] == [model.name]
    for name in (model.name, str(model)):
        answer = http.post("/v1/embeddings", json={"input": "a", "model": name})
        assert (answer.status_code, answer.json()["model"]) == (200, model.name)
        config = http.get(f"/v2/models/{name}/config").json()
        assert config["name"] == name
        assert config["platform"] == "ensemble"


def test_without_admin_no_request_changes_a_server(http: httpx.Client, triton: httpx.Client) -> None:
    before = triton.get("/v2/logging").json()
    for path in ("/v2/logging", "/v2/trace/setting", "/v2/repository/models/embedding/unload"):
        answer = http.post(path, content='{"log_info": false}', headers={"Content-Type": "text/plain", "Origin": "a"})
        assert answer.status_code == 403
        assert "--admin" in answer.json()["error"]
    assert triton.get("/v2/logging").json() == before
    assert http.get("/v2/models/embedding/ready").status_code == 200


def test_a_name_that_triton_would_cut_is_400(http: httpx.Client) -> None:
    tensor = {"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": ["one"]}
    body = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    answer = http.post("/v2/models/embedding%00x/infer", json=body)
    assert answer.status_code == 400
    assert "the model's name" in answer.json()["error"]


def test_inference_answers_like_tritons_own(http: httpx.Client, triton: httpx.Client) -> None:
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
        answer = json.loads(ours.content[: sizes[0]])
        # The manager adds one parameter.
        assert answer["parameters"].pop("embedding_space") == ours.headers["x-embedding-space"]
        assert answer == json.loads(theirs.content[: sizes[1]])
        assert ours.content[sizes[0] :] == theirs.content[sizes[1] :]
    refused = http.post("/v2/models/embedding/infer", json={"inputs": [tensor]})
    assert refused.status_code == 400
    assert "binary" in refused.json()["error"]


def test_bad_requests_get_the_same_status_as_from_triton(http: httpx.Client, triton: httpx.Client) -> None:
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


def test_health_page_and_history_are_served(http: httpx.Client) -> None:
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


def test_a_client_that_half_closes_its_connection_gets_its_answer(manager: Serve) -> None:
    body = b'{"input": "a sentence"}'
    with socket.create_connection(("127.0.0.1", manager.http_port), timeout=30) as client:
        client.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        client.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert b"HTTP/1.1 200 OK\r\n" in answer
    assert b'"embedding"' in answer
