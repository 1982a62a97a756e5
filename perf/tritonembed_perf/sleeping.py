"""A bulk job's compute that sleeps instead of running a model: for simulations, and for tests of what may end it."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tritonembed_bulk.parts import Ledger
from tritonembed_bulk.rows import Work

SPACE = "000000000000-float32"


@dataclass(frozen=True)
class SleepingCompute:
    """Vectors are digests of the texts: the same text has the same vector. Can be pickled.

    tokens: of each text. seconds_per_token: of one worker. log: a folder that gets a file per part that is computed,
    named by the part, a process and a time. poison: a text that ends the worker's process.
    """

    tokens: int = 68
    seconds_per_token: float = 0.0
    dimensions: int = 16
    log: str | None = None
    space: str = SPACE
    poison: str | None = None

    @property
    def embedding_type(self) -> str:
        """See `Compute`."""
        return "float"

    def describe(self) -> dict[str, Any]:
        """See `Compute`."""
        return {"model": "sleeping", "revision": ""}

    def prepare(self, work: Work) -> Work:
        """See `Compute`."""
        return work

    def open(self, ledger: Ledger, device: str) -> SleepingWorker:  # noqa: ARG002
        """See `Compute`."""
        ledger.claim_space(self.space)
        return SleepingWorker(self)

    def finish(self, work: Work) -> Work:
        """See `Compute`."""
        return work


class SleepingWorker:
    """Sleeps for the time that the tokens take."""

    def __init__(self, compute: SleepingCompute) -> None:
        self._compute = compute
        self._executor = threading.Lock()
        """An executor computes one part at a time."""

    def embed(self, work: Work) -> Work:
        """See `Worker`."""
        compute = self._compute
        if compute.log is not None:
            Path(compute.log, f"{work.part.name} {os.getpid()} {time.monotonic_ns()}").touch()
        if compute.poison is not None and compute.poison.encode() in work.texts:
            os._exit(1)
        seconds = compute.seconds_per_token * compute.tokens * len(work.texts)
        with self._executor:
            time.sleep(seconds)
        work.vectors = digests(work.texts, compute.dimensions)
        work.lengths = np.full(len(work.texts), compute.tokens, np.int32)
        work.space, work.busy, work.texts = compute.space, seconds, []
        return work


def digests(texts: list[bytes], dimensions: int) -> Any:
    """float32 [texts, dimensions], between 0 and 1."""
    size = 4 * dimensions
    joined = b"".join(hashlib.shake_128(text).digest(size) for text in texts)
    return (np.frombuffer(joined, "<u4") / np.float64(2**32)).astype(np.float32).reshape(-1, dimensions)
