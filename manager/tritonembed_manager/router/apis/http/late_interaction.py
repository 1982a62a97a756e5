"""Late interaction (MaxSim) for /score: a model that gives a vector per token scores pairs of texts."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2

from tritonembed import ServerError, maxsim
from tritonembed.inputs import batches
from tritonembed.request import Call, Deadline, Options
from tritonembed_manager.router.apis.http.errors import BadRequest
from tritonembed_manager.router.apis.http.vector_requests import MAX_BYTES, Prepared
from tritonembed_manager.router.interfaces import DispatchError
from tritonembed_protocol.served import ServedModel
from tritonembed_protocol.types import MULTI_VECTOR, InputType

Send = Callable[[Sequence[Prepared]], Awaitable[list[bytes]]]
"""Gives the answers to requests."""

_TEXTS_AT_ONCE = 32
"""Texts of a request: with 300 tokens of 128 dimensions each, its answer has 5 MB."""
_REQUESTS_AT_ONCE = 8
"""Requests of which the answers are in memory."""
_END = 512
"""Bytes at the end of an answer, where its embedding space is."""
_NO_OUTPUT = ("the model gives", "unexpected inference output")
"""In the errors of the engine and of Triton for an output that the model does not have."""


def prepare_vectors(model: ServedModel, texts: list[bytes], kind: InputType) -> Iterator[Prepared]:
    """The requests for the vectors of the tokens of texts. kind: what the texts are."""
    parts = batches(texts, lambda part, _first: part, _TEXTS_AT_ONCE, MAX_BYTES)
    options: Options = {"outputs": MULTI_VECTOR, "input_type": kind}
    for request in Call(model.name, "text", parts, options, Deadline(None)).requests():
        yield Prepared(request.message.SerializeToString(), request.count)


async def score_late(
    send: Send, requests: Sequence[Prepared], of_queries: int
) -> tuple[npt.NDArray[np.float32], int, list[bytes]]:
    """The score of each pair, float32 [pairs, 1]; the tokens of all texts; of each answer, the end with its space.

    requests: those of the queries (the first `of_queries`) and those of the texts. There are as many queries as texts,
    or one of either. Raises DispatchError and ServerError.
    """
    queries, rest = requests[:of_queries], requests[of_queries:]
    scoring = _Scoring(sum(one.count for one in rest))
    # A part at a time, because a long text has megabytes of vectors; and not on the event loop.
    await asyncio.to_thread(scoring.add_queries, queries, await send(queries))
    for first in range(0, len(rest), _REQUESTS_AT_ONCE):
        part = rest[first : first + _REQUESTS_AT_ONCE]
        await asyncio.to_thread(scoring.add_texts, part, await send(part))
    table = np.concatenate(scoring.scores)
    if not np.isfinite(table).all():
        raise ServerError("output multi_vector: a number is not finite")
    return table[:, None], scoring.tokens, scoring.ends


class _Scoring:
    """The scores of the answers so far. texts: how many there are."""

    def __init__(self, texts: int) -> None:
        self._texts = texts
        self._queries: list[npt.NDArray[np.float32]] = []
        self._row = 0
        self.scores: list[npt.NDArray[np.float32]] = []
        self.tokens = 0
        self.ends: list[bytes] = []

    def add_queries(self, requests: Sequence[Prepared], answers: Sequence[bytes]) -> None:
        """Keep the vectors of the queries."""
        self._queries = self._read(requests, answers)

    def add_texts(self, requests: Sequence[Prepared], answers: Sequence[bytes]) -> None:
        """Score the next texts."""
        vectors, queries = self._read(requests, answers), self._queries
        if len(queries) == 1:
            self.scores.append(maxsim(queries[0], vectors))
        elif self._texts == 1:
            self.scores += [maxsim(query, vectors) for query in queries]
        else:
            self.scores += [maxsim(queries[self._row + row], [own]) for row, own in enumerate(vectors)]
        self._row += len(vectors)

    def _read(self, requests: Sequence[Prepared], answers: Sequence[bytes]) -> list[npt.NDArray[np.float32]]:
        found = []
        for request, answer in zip(requests, answers, strict=True):
            vectors, tokens = _vectors(request.count, answer)
            found += vectors
            self.tokens += tokens
            self.ends.append(answer[-_END:])
        return found


def _vectors(count: int, answer: bytes) -> tuple[list[npt.NDArray[np.float32]], int]:
    """The vectors of the tokens of each text, and the number of tokens. Raises ServerError."""
    call = Call("", "", iter(()), {"outputs": MULTI_VECTOR}, Deadline(None))
    try:
        result = call.read(count, service_pb2.ModelInferResponse.FromString(answer))
    except DecodeError:
        raise ServerError("the server's answer is not a ModelInferResponse") from None
    return list(result.multi_vector or ()), int(result.num_tokens.sum())


@contextmanager
def without_token_vectors(model: str) -> Iterator[None]:
    """Raises BadRequest, which names the model, for servers' errors about the output that it does not have."""
    try:
        yield
    except DispatchError as error:
        if error.code is not grpc.StatusCode.INVALID_ARGUMENT or not any(part in error.message for part in _NO_OUTPUT):
            raise
        wrong = BadRequest(f"model: {model} gives no vectors of tokens; /score needs these, or a reranker", "model")
        wrong.is_counted = True
        raise wrong from None
