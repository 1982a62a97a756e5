"""What the three protocols have in common: requests are bytes made beforehand, answers bytes until they are checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Answer:
    """vectors: (sentences, dimensions). tokens: what the server says it saw, where the protocol tells it exactly."""

    vectors: npt.NDArray[np.float32]
    tokens: int | None = None


@dataclass(frozen=True)
class Served:
    """What a server says of itself. models: the names it has, `model` the one that is asked."""

    model: str
    models: tuple[str, ...]
    description: str
    max_batch_size: int | None = None


class RequestFailedError(Exception):
    """No answer, or an error in its place. kind: a few words to count it under; the message is the server's."""

    def __init__(self, kind: str, message: str = "") -> None:
        super().__init__(message or kind)
        self.kind = kind


class WrongAnswerError(Exception):
    """An answer that can't be read as vectors."""


class UnreachableError(Exception):
    """Nothing answers at the server's address."""


class UnknownModelError(Exception):
    """models: what the server has instead."""

    def __init__(self, models: Sequence[str]) -> None:
        super().__init__(", ".join(models))
        self.models = tuple(models)


class Transport(Protocol):
    """Open connections to a server, in one event loop."""

    async def send(self, payload: bytes, number: int) -> bytes:
        """The answer's bytes. number: of the request, to spread requests over connections.

        Raises RequestFailedError.
        """

    async def close(self) -> None:
        """Give the connections up at once."""


class WireProtocol(Protocol):
    """One way to ask a server for vectors; small enough to be pickled to the client processes."""

    @property
    def name(self) -> str:
        """As --protocol names it."""

    def encode(self, texts: Sequence[str]) -> bytes:
        """A request's payload."""

    def decode(self, answer: bytes, sentences: int) -> Answer:
        """Raises WrongAnswerError; RequestFailedError where the answer is an error that travels as a success."""

    def open(self, connections: int, timeout: float) -> Transport:
        """Inside the event loop that will use it. timeout: seconds for each request."""

    async def ask(self, timeout: float) -> Served:
        """What the server has. Raises UnreachableError and UnknownModelError."""
