"""A reference that somebody else made: texts, and the vectors that sentence-transformers gave for them.

    texts = ["…", …]
    numpy.savez("reference.npz", texts=texts, vectors=SentenceTransformer(model).encode(texts))

`input_types`, one a text ("query", "passage" or ""), may stand beside them, for `encode_query` and `encode_document`.
"""

from pathlib import Path

import numpy as np

from tritonembed_engine.errors import ModelError
from tritonembed_engine.model.files import ModelFiles
from tritonembed_engine.parameters import INPUT_TYPES, EmbedParameters
from tritonembed_engine.prompt_lengths import PromptLengths
from tritonembed_engine.reference.cases import UNREADABLE, Case, Reference, load


def read_reference(file: Path, files: ModelFiles) -> Reference:
    """The file as a reference of this model. Raises ModelError for one that can't be read or does not fit."""
    from tritonembed_engine.tokenizing import TextTokenizer

    try:
        with np.load(file, allow_pickle=False) as stored:
            if "ids" in stored.files:
                return load(file)
            texts = [str(text) for text in stored["texts"]]
            vectors = stored["vectors"].astype(np.float32)
            kinds = (
                [str(kind) for kind in stored["input_types"]] if "input_types" in stored.files else [""] * len(texts)
            )
    except FileNotFoundError:
        raise ModelError(f"there is no reference {file.name}") from None
    except UNREADABLE as error:
        raise ModelError(f"the reference {file.name} has no texts and vectors ({type(error).__name__})") from None
    if vectors.ndim != 2 or len(vectors) != len(texts) or not len(texts):
        raise ModelError(f"the reference {file.name} has {len(texts)} texts and vectors of shape {vectors.shape}")
    if len(kinds) != len(texts) or not {*kinds} <= {"", *INPUT_TYPES}:
        raise ModelError(f"the reference {file.name}: input_types are not one of query, passage or '' for each text")
    tokenizer, prompts = TextTokenizer(files), PromptLengths(files)
    cases = []
    for number, (text, kind) in enumerate(zip(texts, kinds, strict=True)):
        parameters = EmbedParameters(input_type=kind or None)
        answer = tokenizer.encode_requests([([text.encode()], parameters)])[0]
        if not isinstance(answer, list):
            raise ModelError(f"the reference {file.name}: text {number}: {answer}")
        cases.append(Case(f"text {number}", answer[0], prompts.skip(parameters), text, kind or None))
    return Reference(cases, vectors, file.name, {})
