"""Sparse weights and vectors of tokens through real servers: FlagEmbedding's formulas over transformers' states."""

import json
import struct
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np
import numpy.typing as npt
import pytest
import torch
import tritonclient.grpc
from tests.integration.serve import Serve
from tests.models import TOKEN_DIMENSIONS
from transformers import AutoModel, AutoTokenizer

from tritonembed import EmbeddingClient, EmbeddingResult, InvalidArgumentError
from tritonembed_perf.server import RunningServer

TEXTS = ["", "one", "the river and the engine and the river", "naïve café 中文 😀", "river engine quiet " * 40]
ALL = "dense,sparse,multi_vector"

Array = npt.NDArray[np.float32]


def flag_embedding(folder: Path, texts: Sequence[str]) -> list[tuple[dict[int, float], Array]]:
    """Weights by token id, and the tokens' vectors, of each text."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    sparse, colbert = (torch.load(folder / f"{name}_linear.pt", weights_only=True) for name in ("sparse", "colbert"))
    unused = {tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
    found = []
    for text in texts:
        inputs = tokenizer(text, truncation=True, max_length=64, return_tensors="pt")
        with torch.inference_mode():
            hidden = model(**inputs).last_hidden_state[0]
        weights: dict[int, float] = {}
        for token, weight in zip(
            inputs["input_ids"][0].tolist(), (hidden @ sparse["weight"][0] + sparse["bias"]).tolist(), strict=True
        ):
            if token not in unused and weight > 0:
                weights[token] = max(weights.get(token, 0.0), weight)
        vectors = hidden[1:] @ colbert["weight"].T + colbert["bias"]
        found.append((weights, torch.nn.functional.normalize(vectors, dim=-1).numpy()))
    return found


def check(result: EmbeddingResult, expected: list[tuple[dict[int, float], Array]]) -> None:
    assert result.sparse is not None
    assert result.multi_vector is not None
    for sparse, vectors, (weights, rows) in zip(result.sparse, result.multi_vector, expected, strict=True):
        assert sparse.ids.tolist() == sorted(weights)
        assert sparse.as_dict() == pytest.approx(weights, abs=1e-4)
        np.testing.assert_allclose(vectors, rows, atol=1e-4)


def test_one_request_gives_all_three_outputs(client: EmbeddingClient, model: Path) -> None:
    result = client.embed(TEXTS, outputs=ALL, return_tokens=True)
    check(result, flag_embedding(model, TEXTS))
    np.testing.assert_allclose(result.embeddings, client.embed(TEXTS).embeddings, atol=1e-5)
    assert result.sparse is not None
    names = AutoTokenizer.from_pretrained(model)
    for sparse in result.sparse:
        assert list(sparse.tokens or ()) == names.convert_ids_to_tokens(sparse.ids.tolist())


def test_token_ids_have_the_outputs_of_their_texts(client: EmbeddingClient, model: Path) -> None:
    texts = TEXTS[:4]
    sequences = AutoTokenizer.from_pretrained(model)(texts).input_ids
    check(client.embed_tokens(sequences, outputs=ALL), flag_embedding(model, texts))


def test_options_shorten_and_convert(client: EmbeddingClient) -> None:
    whole = client.embed(TEXTS, outputs=ALL)
    part = client.embed(TEXTS, outputs=ALL, top_k=2, sparse_threshold=0.25, dimensions=16, embedding_type="int8")
    for short, full in zip(part.sparse or [], whole.sparse or [], strict=True):
        heaviest = sorted(full.as_dict().items(), key=lambda pair: -pair[1])[:2]
        assert short.as_dict() == pytest.approx({one: weight for one, weight in heaviest if weight > 0.25}, abs=1e-5)
    for short, full in zip(part.multi_vector or [], whole.multi_vector or [], strict=True):
        cut = full[:, :16] / np.linalg.norm(full[:, :16], axis=1, keepdims=True)
        assert short.dtype == np.int8
        assert np.abs(short - 127 * cut).max() < 0.51


def test_an_output_that_is_not_asked_for_has_empty_elements(server: RunningServer) -> None:
    """A client that names no outputs gets all of the ensemble's."""
    tensor = tritonclient.grpc.InferInput("text", [2, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[b"one"], [b"two"]], dtype=object))
    with tritonclient.grpc.InferenceServerClient(server.target) as triton:
        plain = triton.infer("embedding", [tensor])
        sparse = triton.infer("embedding", [tensor], parameters={"outputs": "sparse"})
    assert [plain.as_numpy(name).ravel().tolist() for name in ("sparse", "multi_vector")] == [[b"", b""]] * 2
    assert all(len(element) == 64 * 4 for element in plain.as_numpy("embedding").ravel())
    assert sparse.as_numpy("embedding").ravel().tolist() == [b"", b""]
    assert all(len(element) % 8 == 4 for element in sparse.as_numpy("sparse").ravel())


def test_the_manager_passes_the_outputs_on(manager: Serve, model: Path) -> None:
    with EmbeddingClient(manager.target) as client:
        check(client.embed(TEXTS, outputs=ALL), flag_embedding(model, TEXTS))
        with pytest.raises(InvalidArgumentError, match="top_k: is for the output sparse"):
            client.embed(["a"], outputs="dense", top_k=3)


def test_teis_routes_have_them_as_json(manager: Serve, model: Path) -> None:
    expected = flag_embedding(model, TEXTS)
    with httpx.Client(base_url=f"http://127.0.0.1:{manager.http_port}", timeout=60) as http:
        weights = http.post("/embed_sparse", json={"inputs": TEXTS}).json()
        vectors = http.post("/embed_all", json={"inputs": TEXTS}).json()
    for text, rows, (known, tokens) in zip(weights, vectors, expected, strict=True):
        assert {pair["index"]: pair["value"] for pair in text} == pytest.approx(known, abs=1e-4)
        np.testing.assert_allclose(np.array(rows).reshape(tokens.shape), tokens, atol=1e-4)


def test_score_is_late_interaction(manager: Serve, model: Path) -> None:
    """The sum over the query's tokens of the largest dot product, in plain Python."""
    prompts = json.loads((model / "config_sentence_transformers.json").read_text()).get("prompts", {})
    passage = next((prompts[name] for name in ("document", "passage", "corpus") if name in prompts), "")
    (_, query), *documents = flag_embedding(
        model, [prompts.get("query", "") + TEXTS[2], *(passage + text for text in TEXTS)]
    )
    wanted = [sum(max(float(own @ other) for other in rows) for own in query) for _, rows in documents]
    with httpx.Client(base_url=f"http://127.0.0.1:{manager.http_port}", timeout=60) as http:
        answer = http.post("/score", json={"text_1": TEXTS[2], "text_2": TEXTS}).json()
    assert [one["score"] for one in answer["data"]] == pytest.approx(wanted, abs=1e-3)


def test_over_http_the_outputs_are_binary(manager: Serve) -> None:
    body = {
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": ["one river"]}],
        "parameters": {"outputs": "multi_vector", "binary_data_output": True},
        "outputs": [{"name": "multi_vector"}],
    }
    url = f"http://127.0.0.1:{manager.http_port}/v2/models/embedding/infer"
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        header = int(answer.headers["Inference-Header-Content-Length"])
        content = answer.read()[header:]
    size, count = struct.unpack_from("<Ii", content)
    assert size == 4 + count * TOKEN_DIMENSIONS * 4 == len(content) - 4
