"""Scores of pairs and texts: what rerankers and classifiers give."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2

from tritonembed_protocol.framing import frame
from tritonembed_protocol.space import SPACE
from tritonembed_protocol.types import Activation, Priority, ScoreTruncate

from ._errors import InvalidArgumentError, ServerError
from ._results import CommonSpace
from .inputs import batches, check_batch_size, encode_texts
from .request import Deadline, PreparedRequest, check_names, check_text, contents_of, write_priority, write_timeout

OUTPUTS = ("score", "num_tokens")


class ScoreOptions(TypedDict, total=False):
    """What a call asks of its scores; see EmbeddingClient.score. What is left out is the server's default."""

    truncate: ScoreTruncate | None
    activation: Activation | None
    instruction: str | None
    priority: Priority
    embedding_space: str | None


@dataclass(frozen=True, eq=False)
class ScoreResult:
    """The scores of n texts, in the order of the texts.

    ``scores`` is float32 (n, labels). ``labels`` are the model's names of its columns. ``num_tokens`` is int32 (n,):
    the tokens of each text with its query. ``embedding_space`` names the model and the precision; None if the server
    does not report it.
    """

    scores: npt.NDArray[np.float32]
    num_tokens: npt.NDArray[np.int32]
    labels: tuple[str, ...]
    embedding_space: str | None = None


@dataclass(frozen=True, eq=False)
class Ranking:
    """The best texts for a query, the best first.

    ``indices`` is int64 (k,): the number of each text. ``scores`` is float32 (k,). ``num_tokens`` is the sum over all
    texts, of which each counts its query. ``embedding_space`` is that of ScoreResult.
    """

    indices: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    num_tokens: int
    embedding_space: str | None = None

    def __iter__(self) -> Iterator[tuple[int, float]]:
        """Pairs of a text's number and its score."""
        return iter(zip(self.indices.tolist(), self.scores.tolist(), strict=True))

    def __len__(self) -> int:
        """How many texts there are."""
        return len(self.indices)


def rank(result: ScoreResult, top_n: int | None) -> Ranking:
    """The texts by their scores. Texts of equal scores stay in their order. Raises InvalidArgumentError."""
    if result.scores.shape[1] != 1:
        raise InvalidArgumentError(f"the model has {result.scores.shape[1]} labels: use score, which gives all of them")
    scores = result.scores[:, 0]
    order = np.argsort(-scores, kind="stable")[:top_n].astype(np.int64)
    return Ranking(order, scores[order], int(result.num_tokens.sum()), result.embedding_space)


def check_top_n(top_n: int | None) -> None:
    """Raise InvalidArgumentError if it is below 1."""
    if top_n is not None and index(top_n) < 1:
        raise InvalidArgumentError("top_n must be at least 1")


class ScoreCall:
    """The requests of a call for scores, and how their answers are read. query: None for texts alone."""

    def __init__(
        self,
        model: str,
        query: str | None,
        texts: Iterable[str],
        options: ScoreOptions,
        batch_size: int,
        timeout: float | None,
    ) -> None:
        """The call's time runs from now on."""
        if isinstance(texts, (str, bytes)):
            raise TypeError("texts is a single text: put it into a list")
        check_names(options, ScoreOptions)
        check_batch_size(batch_size)
        self.model = model
        self._query = None if query is None else _encoded(query)
        self._options: dict[str, Any] = {**options}
        for name in ("instruction", SPACE):
            check_text(name, self._options.get(name))
        self._batches = batches(texts, encode_texts, batch_size)
        self.deadline = Deadline(timeout)

    def requests(self) -> Iterator[PreparedRequest]:
        """The requests, in order, each made when the caller takes it."""
        for batch in self._batches:
            timeout = self.deadline.left()
            message = service_pb2.ModelInferRequest(model_name=self.model)
            inputs = {"text": batch} if self._query is None else {"query": [self._query] * len(batch), "text": batch}
            for name, elements in inputs.items():
                message.inputs.add(name=name, datatype="BYTES", shape=(len(batch), 1))
                message.raw_input_contents.append(frame(elements))
            for output in OUTPUTS:
                message.outputs.add(name=output)
            for name in ("truncate", "activation", "instruction", SPACE):
                if self._options.get(name) is not None:
                    message.parameters[name].string_param = self._options[name]
            write_priority(self._options, message.parameters)
            write_timeout(message, timeout)
            work = sum(map(len, message.raw_input_contents))
            yield PreparedRequest(message, len(batch), work, timeout, self.deadline)

    def read(self, count: int, response: Any) -> ScoreResult:
        """The scores of the answer to a request with ``count`` texts. Raises ServerError if it does not fit."""
        contents = contents_of(response, OUTPUTS)
        scores, num_tokens = contents["score"], contents["num_tokens"]
        if len(num_tokens) != 4 * count:
            raise ServerError(f"output num_tokens: {len(num_tokens)} bytes are not {count} INT32 numbers")
        if not scores or len(scores) % (4 * count):
            raise ServerError(f"output score: {len(scores)} bytes are not FP32 scores of {count} texts")
        table = np.frombuffer(scores, "<f4").reshape(count, -1)
        if not np.isfinite(table).all():
            raise ServerError("output score: a score is not finite")
        space = response.parameters[SPACE].string_param if SPACE in response.parameters else self._options.get(SPACE)
        return ScoreResult(table, np.frombuffer(num_tokens, "<i4"), (), space)


def _encoded(query: str) -> bytes:
    check_text("query", query)
    if not query:
        raise InvalidArgumentError("query is empty")
    return query.encode()


class ScoreCollector:
    """Joins the results of a call's requests."""

    def __init__(self) -> None:
        self._parts: list[ScoreResult] = []
        self._space = CommonSpace()

    def add(self, part: ScoreResult) -> None:
        """Add the next result. Raises ServerError if another model made it."""
        self._space.add(part.embedding_space)
        if self._parts and part.scores.shape[1] != self._parts[0].scores.shape[1]:
            raise ServerError("output score: the number of labels changed during the call")
        self._parts.append(part)

    def result(self, labels: Sequence[str]) -> ScoreResult:
        """Everything that was added. labels: of the model, if they are known."""
        if not self._parts:
            return ScoreResult(np.empty((0, len(labels)), np.float32), np.empty(0, np.int32), tuple(labels))
        scores = np.concatenate([part.scores for part in self._parts])
        count = scores.shape[1]
        named = tuple(labels) if len(labels) == count else tuple(f"LABEL_{number}" for number in range(count))
        tokens = np.concatenate([part.num_tokens for part in self._parts])
        return ScoreResult(scores, tokens, named, self._space.found)
