"""The generated models look like the hub's, are the same each time, and distinguish texts."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from tests.models import WRITERS, ModelShelf
from tests.other_models import write_roberta

from tritonembed_perf.families.vocabularies import training_corpus


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("name", WRITERS)
def test_a_model_has_the_files_of_a_hub_model_and_is_the_same_each_time(
    name: str, shelf: ModelShelf, tmp_path: Path
) -> None:
    first = digests(shelf(name))
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "modules.json",
        "1_Pooling/config.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
    } <= first.keys()
    assert digests(WRITERS[name](tmp_path / "again")) == first


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    folders = [write_roberta(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    assert len({digests(folder)["model.safetensors"] for folder in folders}) == 2


@pytest.mark.parametrize("name", WRITERS)
def test_different_texts_get_clearly_different_vectors(name: str, shelf: ModelShelf) -> None:
    model = SentenceTransformer(str(shelf(name)), device="cpu")
    texts = [line[:100] for line in training_corpus(0)[:20]]
    vectors = model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    assert np.isfinite(vectors).all()
    cosines = (vectors @ vectors.T)[np.triu_indices(len(texts), 1)]
    assert np.median(cosines) < 0.9


def test_texts_that_share_words_are_near_under_mean_pooling(shelf: ModelShelf) -> None:
    model = SentenceTransformer(str(shelf("bert")), device="cpu")
    texts = ["the cat sat on the mat", "a cat sat on the mat", "stock prices fell sharply today"]
    vectors = model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.05


def test_the_command_writes_a_preset(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tritonembed_perf.models", "bert-6x384", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": "perf"})
    assert "wrote bert-6x384 with random weights" in done.stdout
    assert (tmp_path / "out" / "model.safetensors").exists()
