"""Two models in one real Triton server, and a manager in front of it: right vectors of each, on every API."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from huggingface_hub import InferenceClient
from sentence_transformers import SentenceTransformer
from tests.integration.serve import Serve, running_server, serving
from tests.merged import hidden_of, merged_model
from tests.models import ModelShelf

from tritonembed import EmbeddingClient, InvalidArgumentError, ModelNotFoundError
from tritonembed_perf.models import write_adapter

COMMAND = str(Path(sys.executable).with_name("tritonembed"))
TEXTS = ["a few words", "the cat sat on the mat", "x"]
CLOSE = 1e-5


@pytest.fixture(scope="module")
def folders(shelf: ModelShelf) -> dict[str, Path]:
    """The models' folders, by their names for clients: mean pooling and cls pooling."""
    return {"minilm": shelf("bert"), "cls": shelf("bert-cls")}


@pytest.fixture(scope="module")
def adapters(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An adapter of each model; that of the second has a prompt of its own."""
    root = tmp_path_factory.mktemp("adapters")
    law = write_adapter(root / "law", folders["minilm"], ["query", "value"])
    med = write_adapter(root / "med", folders["cls"], ["attention.output.dense"], use_rslora=True)
    prompts = {"prompts": {"med": "medicine: "}, "default_prompt_name": "med"}
    (med / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    return {"law": law, "med": med}


@pytest.fixture(scope="module")
def manager(folders: dict[str, Path], adapters: dict[str, Path]) -> Iterator[Serve]:
    """A manager in front of one server with both models and their adapters."""
    more = ["--model", f"cls={folders['cls']}", "--device", "cpu", "--workers", "1"]
    more += ["--adapter", f"law=embedding:{adapters['law']}", "--adapter", f"med=cls:{adapters['med']}"]
    attached = ["--adapter=law=minilm", "--adapter=med=cls"]
    # Imported faster than vLLM.
    more += ["--executor", "transformers", "--no-reference"]
    with (
        running_server(str(folders["minilm"]), more) as server,
        serving("--server", server.target, "--model=minilm", "--model=cls", *attached) as started,
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


def test_clients_that_send_no_model_choose_one_by_a_path(manager: Serve, folders: dict[str, Path]) -> None:
    base, wanted = f"http://127.0.0.1:{manager.http_port}", SentenceTransformer(str(folders["cls"])).encode(TEXTS)
    for azure in (
        openai.AzureOpenAI(azure_endpoint=base, api_version="2024-10-21", api_key="none"),
        openai.AzureOpenAI(azure_endpoint=base, azure_deployment="cls", api_version="2024-10-21", api_key="none"),
    ):
        answer = azure.embeddings.create(model="cls", input=TEXTS)
        np.testing.assert_allclose([item.embedding for item in answer.data], wanted, atol=CLOSE)
    with pytest.raises(openai.NotFoundError, match="no such model"):
        azure.with_options(base_url=f"{base}/openai/deployments/other").embeddings.create(model="cls", input=TEXTS)
    of_tei = InferenceClient(f"{base}/models/cls")
    normalised = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(of_tei.feature_extraction(TEXTS), normalised, atol=CLOSE)


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


@pytest.fixture(scope="module")
def of_law(folders: dict[str, Path], adapters: dict[str, Path]) -> np.ndarray:  # type: ignore[type-arg]
    """The vectors of TEXTS by merged weights: mean pooling, length 1."""
    oracle = SentenceTransformer(str(folders["minilm"]), device="cpu")
    model = merged_model(folders["minilm"], adapters["law"])
    ids = [np.array(oracle.tokenizer(text)["input_ids"], "<i4") for text in TEXTS]
    pooled = np.stack([hidden_of(model, one).mean(0) for one in ids])
    return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)


def test_an_adapter_is_a_model_of_its_own(manager: Serve, folders: dict[str, Path], of_law: Any) -> None:
    ids = [SentenceTransformer(str(folders["minilm"]), device="cpu").tokenizer(text)["input_ids"] for text in TEXTS]
    with EmbeddingClient(manager.target, model="law") as client, EmbeddingClient(manager.target) as base:
        found = client.embed(TEXTS)
        np.testing.assert_allclose(found.embeddings, of_law, atol=CLOSE)
        np.testing.assert_allclose(client.embed_tokens(ids).embeddings, of_law, atol=CLOSE)
        space, of_base = client.info().embedding_space, base.info().embedding_space
        assert found.embedding_space == space != of_base
        assert client.embed(["x"], embedding_space=space).embedding_space == space
        with pytest.raises(InvalidArgumentError, match=f"the vectors here are of the space {space}"):
            client.embed(["x"], embedding_space=of_base)
        assert np.abs(base.embed(TEXTS).embeddings - of_law).max() > 0.01
    over_http = openai.OpenAI(base_url=f"http://127.0.0.1:{manager.http_port}/v1", api_key="none")
    answer = over_http.embeddings.create(model="law", input=TEXTS)
    assert answer.model == "law"
    np.testing.assert_allclose([item.embedding for item in answer.data], of_law, atol=CLOSE)
    np.testing.assert_allclose(
        [item.embedding for item in over_http.embeddings.create(model="law", input=ids).data], of_law, atol=CLOSE
    )
    listed = {model.id: model.model_dump() for model in over_http.models.list()}
    assert {name: model["parent"] for name, model in listed.items()} == {
        "minilm": None,
        "cls": None,
        "law": "minilm",
        "med": "cls",
    }
    assert listed["law"]["dimensions"] == of_law.shape[1]
    assert listed["law"]["max_model_len"] == listed["minilm"]["max_model_len"]


def test_an_adapter_has_its_own_prompts(manager: Serve) -> None:
    with EmbeddingClient(manager.target, model="med") as client:
        own, plain, same = (
            client.embed(["x"], **options).embeddings
            for options in ({}, {"prompt": ""}, {"prompt_name": "med"})  # type: ignore[arg-type]
        )
    np.testing.assert_array_equal(own, same)
    assert np.abs(own - plain).max() > 0.001


def test_adapters_over_kserves_http(manager: Serve, of_law: Any) -> None:
    url = f"http://127.0.0.1:{manager.http_port}/v2/models"
    body = {
        "inputs": [{"name": "text", "shape": [len(TEXTS), 1], "datatype": "BYTES", "data": TEXTS}],
        "outputs": [{"name": "embedding", "parameters": {"binary_data": False}}],
        "parameters": {"as": "FP32"},
    }
    answer = httpx.post(f"{url}/law/infer", json=body)
    assert answer.json()["model_name"] == "law"
    [output] = answer.json()["outputs"]
    np.testing.assert_allclose(np.reshape(output["data"], of_law.shape), of_law, atol=CLOSE)
    assert httpx.get(f"{url}/law").json()["name"] == "law"
    assert httpx.get(f"{url}/law/ready").status_code == 200
    body["parameters"] = {"as": "FP32", "adapter": "law"}
    by_parameter = httpx.post(f"{url}/minilm/infer", json=body)
    assert by_parameter.json() == answer.json() | {"model_name": "minilm"}
    assert by_parameter.headers["x-embedding-space"] == answer.headers["x-embedding-space"]
    for model, adapter in (("minilm", "med"), ("minilm", "other"), ("law", "med"), ("minilm", "minilm")):
        body["parameters"] = {"as": "FP32", "adapter": adapter}
        refused = httpx.post(f"{url}/{model}/infer", json=body)
        assert refused.status_code == 400
        reason = "adapter: the model has no such adapter; the server's list of models names those that there are"
        assert refused.json() == {"error": reason}


def test_the_client_chooses_an_adapter_by_a_parameter_too(
    manager: Serve, folders: dict[str, Path], of_law: Any, tmp_path: Path
) -> None:
    ids = [SentenceTransformer(str(folders["minilm"]), device="cpu").tokenizer(text)["input_ids"] for text in TEXTS]
    with EmbeddingClient(manager.target) as client, EmbeddingClient(manager.target, model="law") as law:
        found = client.embed(TEXTS, adapter="law")
        np.testing.assert_allclose(found.embeddings, of_law, atol=CLOSE)
        np.testing.assert_allclose(client.embed_tokens(ids, adapter="law").embeddings, of_law, atol=CLOSE)
        assert found.embedding_space == law.info().embedding_space
        assert client.embed(["x"], adapter="law", embedding_space=found.embedding_space).embedding_space
        with pytest.raises(InvalidArgumentError, match="adapter: the model has no such adapter"):
            client.embed(["x"], adapter="med")
    host, port = manager.target.split(":")
    out = tmp_path / "vectors.npy"
    command = [COMMAND, "embed", "--host", host, "--port", port, "--adapter", "law", *TEXTS, "-o", str(out)]
    subprocess.run(command, timeout=60, check=True)
    np.testing.assert_allclose(np.load(out), of_law, atol=CLOSE)


def test_arctics_lora_name_chooses_the_adapter(manager: Serve, of_law: Any, tmp_path: Path) -> None:
    host, port = manager.target.split(":")
    command = [COMMAND, "embed", "--host", host, "--port", port, "--lora-name", "law"]
    out = tmp_path / "vectors.npy"
    subprocess.run([*command, *TEXTS, "-o", str(out)], timeout=60, check=True)
    np.testing.assert_allclose(np.load(out), of_law, atol=CLOSE)
