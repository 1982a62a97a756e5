"""`--server`: a running fleet computes, at bulk priority; actors hold the connections."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tritonembed_bulk.parts import Ledger, Refused
from tritonembed_bulk.rows import Work, reason_of

if TYPE_CHECKING:
    from tritonembed import EmbeddingClient

PATIENCE_SECONDS = 600.0
"""The job ends if the fleet answers nothing for this long; it can go on later."""
LONGEST_PAUSE = 20.0
REQUEST_SECONDS = 300.0


@dataclass(frozen=True)
class FleetCompute:
    """How vectors are made of texts by a fleet. Can be pickled.

    connect: makes a client. options: those of each request. chunks: whether each chunk gets a vector. space: the
    embedding space that the fleet reports; None if it reports none.
    """

    connect: Callable[[], EmbeddingClient]
    options: dict[str, Any]
    batch_size: int
    in_flight: int
    space: str | None
    model: str
    chunks: bool = False
    patience: float = PATIENCE_SECONDS

    @property
    def embedding_type(self) -> str:
        """The type of the output's vectors."""
        return str(self.options.get("embedding_type", "float"))

    def describe(self) -> dict[str, Any]:
        """Name of the served model, for files' metadata."""
        return {"model": self.model, "revision": ""}

    def prepare(self, work: Work) -> Work:
        """Do nothing: the fleet tokenizes."""
        return work

    def open(self, ledger: Ledger, device: str) -> FleetWorker:  # noqa: ARG002
        """Connect."""
        return FleetWorker(self, ledger)

    def finish(self, work: Work) -> Work:
        """Do nothing: the fleet's vectors are written as they are."""
        return work


class FleetWorker:
    """A client of the fleet, in a separate process."""

    def __init__(self, compute: FleetCompute, ledger: Ledger) -> None:
        self._compute = compute
        self._ledger = ledger
        self._client = compute.connect()
        self._senders = ThreadPoolExecutor(compute.in_flight)
        self._claimed: str | None = None

    def embed(self, work: Work) -> Work:
        """The vectors of a part. From any thread. Raises Refused if the fleet can't give them."""
        began = time.perf_counter()
        size = self._compute.batch_size
        order = np.argsort([len(text) for text in work.texts], kind="stable")
        groups = [order[start : start + size] for start in range(0, len(order), size)]
        answers = list(self._senders.map(lambda places: self._request(work, places), groups))
        work.drop({place: reason for _, errors in answers for place, reason in errors.items()})
        self._join(work, [answer for found, _ in answers for answer in found])
        work.busy = time.perf_counter() - began
        work.texts = []
        return work

    def _request(self, work: Work, places: npt.NDArray[np.intp]) -> tuple[list[tuple[Any, Any]], dict[int, str]]:
        """Results with their places, and the refused texts: reasons by place. A refused text is found by halving."""
        from tritonembed import InvalidArgumentError, TritonEmbedError

        try:
            return [(places, self._patiently([work.texts[place].decode() for place in places]))], {}
        except InvalidArgumentError as error:
            if _is_of_all(error.message):
                raise Refused(error.message) from None
            if len(places) == 1:
                return [], {int(places[0]): reason_of(error.message)}
        except TritonEmbedError as error:
            raise Refused(f"{type(error).__name__}: {error.message}") from None
        results: list[tuple[Any, Any]] = []
        errors: dict[int, str] = {}
        for half in np.array_split(places, 2):
            found, refused = self._request(work, half)
            results += found
            errors |= refused
        return results, errors

    def _patiently(self, texts: list[str]) -> Any:
        from tritonembed import DeadlineExceededError, ServerError, UnavailableError

        pause, end = 0.2, time.monotonic() + self._compute.patience
        ask = self._client.embed_chunks if self._compute.chunks else self._client.embed
        while True:
            try:
                return ask(texts, batch_size=len(texts), timeout=REQUEST_SECONDS, **self._compute.options)
            except (UnavailableError, DeadlineExceededError, ServerError):
                # A fleet sheds bulk work first, and may be restarted while a job of hours runs.
                if time.monotonic() > end:
                    raise
                time.sleep(pause * random.uniform(0.5, 1))
                pause = min(2 * pause, LONGEST_PAUSE)

    def _join(self, work: Work, answers: list[tuple[Any, Any]]) -> None:
        """Put the results in the order of the texts."""
        spaces = {result.embedding_space for _, result in answers if result.embedding_space}
        if len(spaces) > 1:
            raise Refused(f"the fleet gives vectors of several spaces: {', '.join(sorted(spaces))}")
        work.space = spaces.pop() if spaces else self._compute.space or ""
        if work.space and work.space != self._claimed:
            self._ledger.claim_space(work.space)
            self._claimed = work.space
        if not answers:
            none = {name: value for name, value in self._compute.options.items() if not name.startswith("chunk_")}
            work.vectors, work.lengths = self._client.embed([], **none).embeddings, np.empty(0, np.int32)
            if self._compute.chunks:
                work.counts, work.offsets = np.empty(0, np.int64), np.empty((0, 2), np.int32)
            return
        vectors = np.concatenate([result.embeddings for _, result in answers])
        tokens = np.concatenate([result.num_tokens for _, result in answers])
        if not self._compute.chunks:
            order = np.argsort(np.concatenate([places for places, _ in answers]), kind="stable")
        else:
            # The place of each chunk's text among all texts; the chunks of a text are in order.
            texts = np.concatenate([places[result.text_index] for places, result in answers])
            order = np.argsort(texts, kind="stable")
            work.counts = np.unique(texts, return_counts=True)[1]
            work.offsets = np.concatenate([result.offsets for _, result in answers])[order]
        work.vectors, work.lengths = vectors[order], tokens[order]


def _is_of_all(message: str) -> bool:
    """Whether a refusal is about a parameter, not about a text of the request."""
    return "text: " not in message
