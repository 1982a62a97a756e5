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
    from transformers import AutoTokenizer

    from tritonembed_engine.reference.cases import Case
    from tritonembed_engine.reference.oracle import Oracle

    tokenizer = AutoTokenizer.from_pretrained(files.transformer, **files.tokenizer_options)
    prompt = files.prompt_for(None)
    limit = files.lengths[None]
    ids = [tokenizer(prompt + text, truncation=True, max_length=limit).input_ids for text in texts]
    cases = [Case("text", np.asarray(one, dtype="<i4").tobytes()) for one in ids]
    vectors = Oracle(str(files.folder), None, files).embed(cases)
    return unit_rows(vectors) if files.normalize else vectors
