"""The tensor `token_ids`: each element one sentence's ids as little-endian int32."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tritonembed_engine.errors import InvalidArgument

BYTES_PER_TOKEN = 4


def check_lengths(sentences: Sequence[bytes], max_length: int) -> None:
    """Raise InvalidArgument, naming the sentence and the limit, for a length that can't be embedded.

    The embedder never truncates: what is too long is refused whatever `truncate` says.
    """
    for index, sentence in enumerate(sentences):
        size = len(sentence)
        if size % BYTES_PER_TOKEN:
            raise _wrong(index, f"has {size} bytes, not a multiple of {BYTES_PER_TOKEN}")
        if size == 0:
            raise _wrong(index, "has no tokens")
        if size > max_length * BYTES_PER_TOKEN:
            raise _wrong(index, f"has {size // BYTES_PER_TOKEN} tokens, over the model's maximum of {max_length}")


def in_vocabulary(sentences: Sequence[bytes], vocab_size: int) -> bool:
    """Whether every id of every sentence is one of the model's; the sentences have passed `check_lengths`."""
    # One comparison covers both ends: a negative id is a large unsigned one.
    return bool(join_ids(sentences).view(np.uint32).max(initial=0) < vocab_size)


def check_vocabulary(sentences: Sequence[bytes], vocab_size: int) -> None:
    """Raise InvalidArgument, naming the sentence, for an id that the model does not have."""
    for index, sentence in enumerate(sentences):
        if not in_vocabulary([sentence], vocab_size):
            raise _wrong(index, f"has an id outside the vocabulary of 0 to {vocab_size - 1}")


def holds(sentence: bytes, token_id: int) -> bool:
    """Whether a sentence has a certain id."""
    return bool((np.frombuffer(sentence, dtype="<i4") == token_id).any())


def check_without(sentences: Sequence[bytes], token_id: int) -> None:
    """Raise InvalidArgument, naming the sentence, for an id that the executor would give a wrong position."""
    for index, sentence in enumerate(sentences):
        if holds(sentence, token_id):
            raise _wrong(index, "has the padding token, which vLLM's scheduler can't place")


def join_ids(sentences: Sequence[bytes]) -> npt.NDArray[np.int32]:
    """All ids of many sentences, flat: int32 [tokens]."""
    return np.frombuffer(b"".join(sentences), dtype="<i4")


def lengths_of(sentences: Sequence[bytes]) -> npt.NDArray[np.int32]:
    """Tokens of each sentence: int32 [sentences]."""
    return np.fromiter(map(len, sentences), dtype=np.int32, count=len(sentences)) // BYTES_PER_TOKEN


def _wrong(index: int, problem: str) -> InvalidArgument:
    return InvalidArgument("token_ids", f"sentence {index} {problem}")
