"""Reference vectors by Hugging Face transformers, in float32. They use no code of the engine, not even for pooling."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer


def reference_vectors(
    folder: Path, texts: Sequence[str], pooling: str, normalize: bool, max_length: int
) -> "np.ndarray":  # type: ignore[type-arg]
    """float32 [texts, hidden size]. Each text is embedded alone, so that nothing depends on padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    rows = []
    with torch.inference_mode():
        for text in texts:
            inputs = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")
            inputs = {name: value for name, value in inputs.items() if name in ("input_ids", "attention_mask")}
            hidden = model(**inputs).last_hidden_state[0]
            row = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[pooling]
            rows.append(torch.nn.functional.normalize(row, dim=0) if normalize else row)
    return torch.stack(rows).numpy()


def reference_spans(
    folder: Path, texts: Sequence[str], spans: Sequence[Sequence[tuple[int, int]]]
) -> "tuple[np.ndarray, list[int]]":  # type: ignore[type-arg]
    """Late chunking: unit vectors float32 [spans, hidden size], and the tokens of each span: those that end in it.

    spans: start and end in characters, per text. Each text goes through the model alone and whole.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    rows, num_tokens = [], []
    for text, of_text in zip(texts, spans, strict=True):
        encoded = tokenizer(text, return_offsets_mapping=True, return_tensors="pt")
        offsets = encoded.pop("offset_mapping")[0].tolist()
        with torch.inference_mode():
            hidden = model(**encoded).last_hidden_state[0]
        for start, end in of_text:
            inside = [at for at, (begin, after) in enumerate(offsets) if begin < after and start < after <= end]
            rows.append(torch.nn.functional.normalize(hidden[inside].mean(0), dim=0))
            num_tokens.append(len(inside))
    return torch.stack(rows).numpy(), num_tokens


def cosines(left: "np.ndarray", right: "np.ndarray") -> "np.ndarray":  # type: ignore[type-arg]
    """Cosines [rows], in float64; 1 if both rows are zero, as a random model's end token can be."""
    left, right = left.astype(np.float64), right.astype(np.float64)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    both_zero = ~(left.any(axis=1) | right.any(axis=1))
    return np.where(both_zero, 1.0, (left * right).sum(1) / np.where(both_zero, 1.0, norms))
