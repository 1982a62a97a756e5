"""Decoder models of the families' cases, for longer texts, and their vectors by sentence-transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers import SentenceTransformer
from tests.integration.preloaded import Preloaded

from tritonembed_perf.families.registry import load_cases
from tritonembed_perf.families.writing import edit_json

LENGTHS = (1, 7, 50, 300, 1500)
"""Tokens. The last text is longer than those that vLLM has a cache for, and than every attention window."""


def write_decoder(folder: Path, name: str, longest: int = 2048) -> Path:
    """The folder of a case, with room for texts of `longest` tokens."""
    folder.mkdir()
    load_cases()[name].write(folder)
    edit_json(folder / "config.json", max_position_embeddings=longest)
    edit_json(folder / "sentence_bert_config.json", max_seq_length=longest)
    return folder


def random_sentences(folder: Path) -> list[npt.NDArray[np.int32]]:
    """Token ids, one sentence of each length."""
    rng = np.random.default_rng(5)
    rows = SentenceTransformer(str(folder), device="cpu")[0].auto_model.get_input_embeddings().num_embeddings
    return [rng.integers(0, rows, length, dtype=np.int32) for length in LENGTHS]


def expected_vectors(folder: Path, sentences: list[npt.NDArray[np.int32]]) -> npt.NDArray[np.float32]:
    """One sentence at a time in float32, through all of sentence-transformers' modules."""
    # transformers' SDPA leaves out soft caps.
    exact = {"dtype": torch.float32, "attn_implementation": "eager"}
    model = SentenceTransformer(str(folder), device="cpu", model_kwargs=exact)
    rows = []
    with torch.inference_mode():
        for ids in sentences:
            tokens = torch.from_numpy(ids.astype(np.int64))[None]
            features: Any = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
            rows.append(model(features)["sentence_embedding"][0])
    return torch.stack(rows).numpy()


def check_packed_batches(preloaded: Preloaded, folder: Path, work: Path, vllm: str = "{}") -> None:
    """The direct executor's vectors are sentence-transformers', whatever else is in the batch.

    vllm: vLLM's arguments as JSON.
    """
    sentences = random_sentences(folder)
    np.savez(work / "ids.npz", *sentences)
    done = preloaded.run("tests.integration.packed_vectors", folder, work / "ids.npz", work / "found.npz", vllm)
    assert done.returncode == 0, done.stderr[-3000:]
    found = np.load(work / "found.npz")
    assert found["executor"] == "direct", done.stderr[-3000:]
    expected = expected_vectors(folder, sentences)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert (found["together"] * expected).sum(1).min() >= 0.99999
    assert np.abs(found["together"] - expected).max() <= 1e-4
    for other in ("reversed", "alone"):
        assert np.abs(found["together"] - found[other]).max() <= 1e-5
