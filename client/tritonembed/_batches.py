"""Splitting any number of elements into requests that the server takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

MAX_BATCH_SIZE = 1024
MAX_REQUEST_BYTES = 32 * 1024 * 1024


def check_batch_size(batch_size: int) -> None:
    """Raise ValueError where a request would hold more sentences than the server takes, or none."""
    if not 1 <= batch_size <= MAX_BATCH_SIZE:
        raise ValueError(f"batch_size is from 1 to {MAX_BATCH_SIZE}")


def batches(elements: Iterable[bytes], batch_size: int, max_bytes: int = MAX_REQUEST_BYTES) -> Iterator[list[bytes]]:
    """Lists of at most ``batch_size`` elements and ``max_bytes`` bytes, in order.

    An element that is larger alone travels alone: what the server allows is a setting of the server.
    """
    batch: list[bytes] = []
    size = 0
    for element in elements:
        if batch and size + len(element) > max_bytes:
            yield batch
            batch, size = [], 0
        batch.append(element)
        size += len(element)
        # Given out when full, not when the next element comes: a slow source must not hold back a full request.
        if len(batch) == batch_size:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
