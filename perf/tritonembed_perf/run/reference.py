"""Vectors that are known to be right, to hold the answers under load against."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from tritonembed_engine.model.files import ModelFiles
from tritonembed_perf.run.checks import Reference, unit_rows
from tritonembed_perf.run.corpus import PooledRequest

SENTENCES = 64
"""So many sentences, or one more request's, are compared."""

Embed = Callable[[Sequence[str]], npt.NDArray[np.float32]]


def make_references(requests: Sequence[PooledRequest], embed: Embed) -> dict[int, Reference]:
    """References by the number of the request. embed: the right vectors of some texts.

    Whole requests are taken, so that vectors in the wrong order are found too; of a very large one a part.
    """
    chosen: dict[int, tuple[str, ...]] = {}
    missing = SENTENCES
    for number, request in enumerate(requests):
        if missing <= 0:
            break
        chosen[number] = request.texts[:SENTENCES]
        missing -= len(chosen[number])
    vectors = unit_rows(embed([text for texts in chosen.values() for text in texts]))
    references = {}
    start = 0
    for number, texts in chosen.items():
        references[number] = Reference(np.arange(len(texts)), vectors[start : start + len(texts)])
        start += len(texts)
    return references


def embed_with_transformers(files: ModelFiles, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """float32 on the CPU, by the library alone: each text by itself, pooled and normalised as the model's files say."""
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(files.folder)
    model = AutoModel.from_pretrained(files.folder, dtype=torch.float32).eval()
    prompt = files.prompt_for(None)
    rows = []
    with torch.inference_mode():
        for text in texts:
            inputs = tokenizer(prompt + text, truncation=True, max_length=files.max_length, return_tensors="pt")
            hidden = model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).last_hidden_state[0]
            row = {"MEAN": hidden.mean(0), "CLS": hidden[0], "LAST": hidden[-1]}[files.pooling]
            rows.append(torch.nn.functional.normalize(row, dim=0) if files.normalize else row)
    vectors: npt.NDArray[np.float32] = torch.stack(rows).numpy()
    return vectors
