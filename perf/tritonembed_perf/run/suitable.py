"""Is a running Triton, or a manager, one that requests of given shapes can be sent to? Found out before they are."""

import random
from collections.abc import Sequence

from tritonembed_engine.model.files import ModelFiles
from tritonembed_perf.failures import UsageError
from tritonembed_perf.run.corpus import WordTexts
from tritonembed_perf.run.kserve import KServe
from tritonembed_perf.run.target import QUESTION_TIMEOUT_S, ask_server, embed_alone, refuse_other_dimensions

Shapes = Sequence[tuple[str, int, int]]
"""Of each: the name that goes into an error, tokens, sentences."""


def check_server(server: str, files: ModelFiles, words: WordTexts, shapes: Shapes) -> None:
    """It answers, has the ensemble, of this model as far as vectors tell, and takes as many sentences.

    Raises UsageError.
    """
    protocol = KServe(server)
    limit = ask_server(protocol).max_batch_size
    if limit:
        check_sentences(shapes, limit)
    shortest = min(tokens for _, tokens, _ in shapes)
    texts = words.of_lengths([shortest], random.Random(0))
    refuse_other_dimensions(embed_alone(protocol, texts, QUESTION_TIMEOUT_S).shape[1], files)


def check_sentences(shapes: Shapes, limit: int) -> None:
    """No request has more than so many. Raises UsageError."""
    for name, _, sentences in shapes:
        if sentences > limit:
            raise UsageError(f"{name}: the server takes {limit} sentences a request")
