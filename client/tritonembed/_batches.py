"""Splitting any number of inputs into requests that the server takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")

MAX_BATCH_SIZE = 1024
MAX_REQUEST_BYTES = 32 * 1024 * 1024


def check_batch_size(batch_size: int) -> None:
    """Raise ValueError where a request would hold more sentences than the server takes, or none."""
    if not 1 <= batch_size <= MAX_BATCH_SIZE:
        raise ValueError(f"batch_size is from 1 to {MAX_BATCH_SIZE}")


def batches(
    inputs: Iterable[T],
    encode: Callable[[list[T], int], list[bytes]],
    batch_size: int,
    max_bytes: int = MAX_REQUEST_BYTES,
) -> Iterator[list[bytes]]:
    """The encoded inputs in order, in lists of at most ``batch_size`` elements and ``max_bytes`` bytes.

    ``encode(part, first)`` gives the bytes of a list of inputs whose first has the index ``first``. Only as many inputs
    are taken from ``inputs`` as the next list needs: it may be endless, or larger than memory.
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
    """Cut where the next element would be too much; one that is too large alone travels alone.

    Refusing it is up to the server, whose limit is a setting.
    """
    batch: list[bytes] = []
    size = 0
    for element in elements:
        if batch and size + len(element) > max_bytes:
            yield batch
            batch, size = [], 0
        batch.append(element)
        size += len(element)
    yield batch
