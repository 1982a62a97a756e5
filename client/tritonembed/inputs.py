"""Texts and token ids: checked, encoded, and split into requests of a size that the server takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from tritonembed_protocol.limits import MAX_BATCH_SIZE, MAX_REQUEST_BYTES

from ._errors import InvalidArgumentError

T = TypeVar("T")
TokenIds = Sequence[int] | npt.NDArray[np.integer[Any]]

INT32 = np.iinfo(np.int32)


def encode_texts(texts: list[str], first: int = 0) -> list[bytes]:
    """Each text as UTF-8. An error names the text by its index, counted from ``first``, and never shows it."""
    try:
        # str.encode as a function, not as a method: it also refuses everything that is not a str.
        return list(map(str.encode, texts))
    except (UnicodeEncodeError, TypeError):
        raise _unencodable(texts, first) from None  # the cause would carry the text


def _unencodable(texts: list[str], first: int) -> Exception:
    for index, text in enumerate(texts, first):
        if not isinstance(text, str):
            return TypeError(f"text[{index}] is {type(text).__name__}, not str")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            message = f"text[{index}]: a lone surrogate at character {error.start} has no UTF-8 form"
            return InvalidArgumentError(message)
    raise AssertionError("one of the texts was refused")


def encode_token_ids(sequences: list[TokenIds], first: int = 0) -> list[bytes]:
    """Each sequence of token ids as little-endian int32. An error names it by its index, counted from ``first``."""
    return [_token_ids(sequence, index) for index, sequence in enumerate(sequences, first)]


def _token_ids(sequence: TokenIds, index: int) -> bytes:
    try:
        ids = np.asarray(sequence)
    except ValueError:
        ids = np.empty((0, 0))  # sequences of different lengths
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iuO"):
        raise TypeError(f"token_ids[{index}] is not a flat sequence of ints")
    if ids.dtype.kind == "O" and not all(isinstance(number, int) for number in ids):
        raise TypeError(f"token_ids[{index}] is not a flat sequence of ints")
    # Ints beyond 64 bits are objects in numpy; ints beyond 32 bits would wrap around silently.
    if ids.dtype != np.int32 and ids.size and (ids.min() < INT32.min or ids.max() > INT32.max):
        raise InvalidArgumentError(f"token_ids[{index}]: an id does not fit in 32 bits")
    return ids.astype("<i4", copy=False).tobytes()


def check_batch_size(batch_size: int) -> None:
    """Raise ValueError if a request would hold no sentence, or more than the server takes."""
    if not 1 <= batch_size <= MAX_BATCH_SIZE:
        raise ValueError(f"batch_size must be from 1 to {MAX_BATCH_SIZE}")


def batches(
    inputs: Iterable[T],
    encode: Callable[[list[T], int], list[bytes]],
    batch_size: int,
    max_bytes: int = MAX_REQUEST_BYTES,
) -> Iterator[list[bytes]]:
    """The encoded inputs in order, in lists of at most ``batch_size`` elements and ``max_bytes`` bytes.

    ``encode(part, first)`` gives the bytes of a list of inputs; ``first`` is the index of its first input. The next
    list takes only the inputs that it needs: ``inputs`` may be endless, or larger than memory.
    """
    source = iter(inputs)
    first = 0
    while part := list(islice(source, batch_size)):
        elements = encode(part, first)
        first += len(part)
        if sum(map(len, elements)) <= max_bytes:
            yield elements
        else:
            yield from _by_bytes(elements, max_bytes)


def _by_bytes(elements: list[bytes], max_bytes: int) -> Iterator[list[bytes]]:
    """Lists of at most ``max_bytes``. An element that is larger goes alone: the server's own limit is a setting."""
    batch: list[bytes] = []
    size = 0
    for element in elements:
        if batch and size + len(element) > max_bytes:
            yield batch
            batch, size = [], 0
        batch.append(element)
        size += len(element)
    yield batch
