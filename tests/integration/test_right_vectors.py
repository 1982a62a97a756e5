"""Through a real server, a folder gives sentence-transformers' vectors, or the start fails with a one-line reason."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tests.integration.preloaded import Preloaded
from tests.integration.reference import cosines
from tests.integration.serve import running_server
from tests.other_models import write_roberta

from tritonembed import EmbeddingClient, InvalidArgumentError
from tritonembed_perf import models
from tritonembed_perf.families.registry import load_cases

TEXTS = ["", "   ", "one", "a longer text, with [SEP] and [PAD] in it", "naïve 😀 中文", "word " * 300]
WIDTH = 64
PROMPTS = {"query": "find: ", "passage": "text: ", "title": "title: ", "web": "Instruct: Find pages\nQuery: "}
ON_DIRECT = ("--device", "cpu", "--executor", "direct")


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with all the settings that vLLM would silently misread."""
    folder = tmp_path_factory.mktemp("rich") / "rich-model"
    shape = {"layers": 2, "hidden": WIDTH, "heads": 2, "intermediate": 128, "max_length": 64}
    models.write_bert(folder, **shape, prompts=PROMPTS)
    kinds = ["transformer.Transformer", "pooling.Pooling", "layer_norm.LayerNorm", "dense.Dense", "normalize.Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind.rpartition('.')[2]}" if i else "", "type": _class_of(kind)}
        for i, kind in enumerate(kinds)
    ]
    write_json(folder / "modules.json", modules)
    pooling = {"embedding_dimension": WIDTH, "pooling_mode": ["weightedmean", "max"], "include_prompt": False}
    write_json(folder / "1_Pooling" / "config.json", pooling)
    write_json(folder / "2_LayerNorm" / "config.json", {"dimension": 2 * WIDTH})
    dense = {"in_features": 2 * WIDTH, "out_features": 48, "bias": True, "use_residual": True}
    activation = "torch.nn.modules.activation.LeakyReLU"
    write_json(folder / "3_Dense" / "config.json", {**dense, "activation_function": activation})
    (folder / "4_Normalize").mkdir()
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator) * 0.2

    save_file(
        {"norm.weight": 1 + draw(2 * WIDTH), "norm.bias": draw(2 * WIDTH)}, folder / "2_LayerNorm/model.safetensors"
    )
    weights = {"linear.weight": draw(48, 2 * WIDTH), "linear.bias": draw(48), "residual.weight": draw(48, 2 * WIDTH)}
    save_file(weights, folder / "3_Dense/model.safetensors")
    settings = json.loads((folder / "sentence_bert_config.json").read_text())
    write_json(folder / "sentence_bert_config.json", {**settings, "query_length": 16})
    config = json.loads((folder / "config_sentence_transformers.json").read_text())
    write_json(folder / "config_sentence_transformers.json", {**config, "truncate_dim": 40})
    return folder


def _class_of(kind: str) -> str:
    family = "sentence_transformer" if kind.startswith(("pooling", "layer_norm")) else "base"
    return f"sentence_transformers.{family}.modules.{kind}"


def test_a_folder_that_vllm_would_misread_gives_sentence_transformers_vectors(folder: Path) -> None:
    theirs = SentenceTransformer(str(folder), device="cpu")
    with (
        running_server(str(folder), [*ON_DIRECT, "--workers", "1", "--deterministic"]) as server,
        EmbeddingClient(server.target) as client,
    ):
        log = server.read_log()
        alone = np.concatenate([client.embed([text]).embeddings for text in TEXTS])
        assert np.array_equal(alone, client.embed(TEXTS).embeddings), "--deterministic gives equal bits"
        for options, expected in (
            ({}, theirs.encode(TEXTS)),
            ({"input_type": "query"}, theirs.encode_query(TEXTS)),
            ({"input_type": "passage"}, theirs.encode(TEXTS, prompt_name="passage")),
            ({"prompt_name": "title"}, theirs.encode(TEXTS, prompt_name="title")),
            ({"prompt": "free: "}, theirs.encode(TEXTS, prompt="free: ")),
            ({"instruction": "Find cats"}, theirs.encode(TEXTS, prompt="Instruct: Find cats\nQuery: ")),
        ):
            ours = client.embed(TEXTS, **options).embeddings
            assert ours.shape == expected.shape == (len(TEXTS), 40)
            assert cosines(ours, expected).min() > 0.99999, options
        assert client.embed(TEXTS, dimensions=48).embeddings.shape == (len(TEXTS), 48)
        with pytest.raises(InvalidArgumentError, match="prompt_name"):
            client.embed(TEXTS, prompt_name="unheard of")
        with pytest.raises(InvalidArgumentError, match="prompt"):
            client.embed(TEXTS, prompt_name="title", prompt="free: ")
    assert "direct executor: lowest cosine 1.0" in log, log


def test_verify_distinguishes_right_from_wrong(preloaded: Preloaded, tmp_path: Path) -> None:
    """CamemBERT is right, although vLLM alone begins its positions at 0. With another model's reference it is wrong."""
    folder = write_roberta(tmp_path / "camembert", hidden=128, max_length=64)
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "model_type": "camembert", "architectures": ["CamembertModel"]})
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    write_json(folder / "tokenizer_config.json", settings)
    theirs = SentenceTransformer(str(folder), device="cpu")
    texts = ["one <pad> two", *TEXTS]
    right, wrong = tmp_path / "right.npz", tmp_path / "wrong.npz"
    vectors = theirs.encode(texts)
    np.savez(right, texts=texts, vectors=vectors)
    np.savez(wrong, texts=texts, vectors=np.roll(vectors, 1, axis=1))
    command = [sys.executable, "-m", "tritonembed_manager", "verify", str(folder), "--device=cpu", "--json"]
    ran = subprocess.run([*command, f"--reference={right}"], capture_output=True, text=True, timeout=240)
    assert (ran.returncode, json.loads(ran.stdout)["right"]) == (0, True), ran.stderr
    # This runs only the command's engine process. A unit test checks the exit code for its report.
    asked = {"settings": {"model": str(folder), "engine": {"reference": str(wrong)}}, "device": "cpu", "write": None}
    done = preloaded.run("tritonembed_engine.verify", json.dumps({**asked, "report": str(tmp_path / "report")}))
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "report").read_text())
    assert not report["right"]
    assert max(row["distance"] for row in report["rows"]) > 0.01


def test_a_family_that_vllm_lacks_is_served_by_transformers_and_right(preloaded: Preloaded, tmp_path: Path) -> None:
    """tests/slow does this through `serve`."""
    folder = tmp_path / "mpnet"
    load_cases()["mpnet"].write(folder)
    settings = {"model": str(folder), "engine": {"executor": "transformers"}}
    asked = {"settings": settings, "device": "cpu", "write": None, "report": str(tmp_path / "report")}
    done = preloaded.run("tritonembed_engine.verify", json.dumps(asked))
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "report").read_text())
    assert report["right"]
    assert report["executor"] == "transformers"


def test_a_checkpoint_that_lacks_a_weight_does_not_start_and_names_it(preloaded: Preloaded, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    models.write_bert(broken, layers=2, hidden=WIDTH, heads=2, intermediate=128)
    weights = load_file(broken / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    asked = {"settings": {"model": str(broken)}, "device": "cpu", "write": None, "report": str(tmp_path / "report")}
    done = preloaded.run("tritonembed_engine.verify", json.dumps(asked))
    assert done.returncode == 1
    reason = json.loads((tmp_path / "report").read_text())["error"]
    assert "encoder.layer.1.output.dense.weight" in reason
    assert str(tmp_path) not in reason
