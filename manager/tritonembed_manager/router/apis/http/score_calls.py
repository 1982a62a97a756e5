"""Calls for scores over HTTP, of any API: the question, the requests to servers, and the scores.

A reranker scores pairs itself. With a model that gives a vector per token, late interaction (MaxSim) scores them here.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from aiohttp import web
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2

from tritonembed import ServerError, maxsim
from tritonembed.inputs import batches
from tritonembed.request import Call, Deadline, Options, contents_of
from tritonembed_manager.router.apis.authentication import http_caller
from tritonembed_manager.router.apis.http.bodies import Bodies
from tritonembed_manager.router.apis.http.converter import Converter
from tritonembed_manager.router.apis.http.errors import BadRequest
from tritonembed_manager.router.apis.http.vector_calls import send_all
from tritonembed_manager.router.apis.http.vector_requests import MAX_BYTES, PreparedMessage, of_path
from tritonembed_manager.router.data import spaces
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.data.tracing import metadata_of
from tritonembed_manager.router.interfaces import Dispatcher, DispatchError
from tritonembed_protocol.framing import frame, unframe
from tritonembed_protocol.limits import MAX_BATCH_SIZE
from tritonembed_protocol.served import ServedModel
from tritonembed_protocol.space import HEADER
from tritonembed_protocol.types import MULTI_VECTOR, InputType

OUTPUTS = ("score", "num_tokens")

_LABELS = "labels"
"""The parameter of a model's configuration."""


@dataclass(frozen=True)
class ScoresRequest:
    """texts, queries: in UTF-8, equally many; queries is None for texts alone. model: the requested model.

    options: request parameters of the servers. info: data for the answer, as JSON.
    """

    texts: list[bytes]
    queries: list[bytes] | None
    model: ServedNames
    options: dict[str, str | int] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)


def prepare_scores(asked: ScoresRequest) -> Iterator[PreparedMessage]:
    """The requests that a server accepts."""
    served = asked.model.served
    for first, last in _parts(asked):
        request = service_pb2.ModelInferRequest(model_name=served.classify if asked.queries is None else served.name)
        inputs = {} if asked.queries is None else {"query": asked.queries[first:last]}
        for name, elements in {**inputs, "text": asked.texts[first:last]}.items():
            request.inputs.add(name=name, datatype="BYTES", shape=(last - first, 1))
            request.raw_input_contents.append(frame(elements))
        for output in OUTPUTS:
            request.outputs.add(name=output)
        for name, value in asked.options.items():
            if isinstance(value, str):
                request.parameters[name].string_param = value
            else:
                request.parameters[name].int64_param = value
        yield PreparedMessage(request.SerializeToString(), last - first)


def _parts(asked: ScoresRequest) -> Iterator[tuple[int, int]]:
    """The first row of each request, and the end."""
    first = size = 0
    for row, text in enumerate(asked.texts):
        own = len(text) + (0 if asked.queries is None else len(asked.queries[row]))
        if row > first and (row - first == MAX_BATCH_SIZE or size + own > MAX_BYTES):
            yield first, row
            first, size = row, 0
        size += own
    yield first, len(asked.texts)


@dataclass(frozen=True)
class Scores:
    """The answers to one call.

    table: float32 [rows, labels]. tokens: of all rows. info: of the conversion of its body. texts: of the rows. model:
    its name in the answer. labels: of the columns. space: as a header.
    """

    table: npt.NDArray[np.float32]
    tokens: int
    info: dict[str, Any]
    texts: list[bytes]
    model: str
    labels: tuple[str, ...]
    space: dict[str, str]

    def ranked(self, top_n: int | None = None) -> list[tuple[int, float]]:
        """Rows and their scores, the best first. Raises BadRequest if a row has several."""
        if self.table.shape[1] != 1:
            raise BadRequest(f"model: it has {self.table.shape[1]} labels; /predict gives all of them", "model")
        order = np.argsort(-self.table[:, 0], kind="stable")[:top_n].tolist()
        return [(row, float(self.table[row, 0])) for row in order]

    def answer(self, found: Any) -> web.Response:
        """The HTTP answer with this JSON."""
        return web.json_response(found, headers=self.space)


class ScoreCalls:
    """Sends the pairs and texts of HTTP requests to the servers. names: of the models."""

    def __init__(self, dispatcher: Dispatcher, names: ServedNames, bodies: Bodies, converter: Converter) -> None:
        self._dispatcher = dispatcher
        self._names = names
        self._bodies = bodies
        self._converter = converter
        self._labels: dict[tuple[str, frozenset[str]], tuple[str, ...]] = {}
        """The labels, by model and the spaces of its scores."""

    @asynccontextmanager
    async def score(self, request: web.Request, kind: str, **arguments: Any) -> AsyncIterator[Scores]:
        """The scores for a request's body. kind: of the conversion. Raises BadRequest, DispatchError, ServerError."""
        async with self._bodies.read_chunks(request) as chunks:
            asked = await self._converter.convert(kind, chunks, names=of_path(request, self._names).json, **arguments)
            names = self._names.of_part(asked.info["model"]) or self._names
            counts = asked.info["counts"]
            requests = list(map(PreparedMessage, asked.messages, counts))
            metadata, caller = metadata_of(request.headers), http_caller(request)
            model = asked.info["model"]

            # Vectors of two spaces can't be compared, so later parts have to be of the first part's space.
            pinned: list[tuple[str, str]] = []

            async def send(some: Sequence[PreparedMessage]) -> list[bytes]:
                asking = (*metadata, *pinned)
                found = await send_all(self._dispatcher, some, lambda _, answer: answer, asking, caller, model)
                if not pinned and (space := spaces.in_answer(found[0])):
                    pinned.append((HEADER, space))
                return found

            labels: tuple[str, ...] = ()
            if (of_queries := asked.info.get("of_queries")) is not None:
                with without_token_vectors(names.model):
                    table, tokens, answers = await score_late(send, requests, of_queries)
            else:
                answers = await send(requests)
                table, tokens = _joined(answers, counts)
                of_spaces = frozenset(map(spaces.in_answer, answers))
                labels = await self._labels_of(model, of_spaces, table.shape[1])
            found = {spaces.in_answer(answer) for answer in answers}
            texts = [text for message in asked.messages for text in _texts_of(message)]
            yield Scores(table, tokens, asked.info["info"], texts, names.model, labels, spaces.headers_of(found))

    async def _labels_of(self, model: str, found: frozenset[str], count: int) -> tuple[str, ...]:
        """The names of a model's labels, asked for once; numbers if none reports them. found: the scores' spaces."""
        key = model, found
        if key not in self._labels:
            asked = service_pb2.ModelConfigRequest(name=model).SerializeToString()
            answer = service_pb2.ModelConfigResponse.FromString(
                await self._dispatcher.call("ModelConfig", asked, timeout=None)
            )
            with suppress(ValueError, TypeError):
                labels = json.loads(answer.config.parameters[_LABELS].string_value)
                self._labels[key] = tuple(map(str, labels))
        known = self._labels.get(key, ())
        return known if len(known) == count else tuple(f"LABEL_{number}" for number in range(count))


def _joined(answers: list[bytes], counts: list[int]) -> tuple[npt.NDArray[np.float32], int]:
    """The scores of all rows, and the sum of their tokens. Raises ServerError."""
    tables, tokens = [], 0
    for answer, count in zip(answers, counts, strict=True):
        try:
            contents = contents_of(service_pb2.ModelInferResponse.FromString(answer), OUTPUTS)
        except DecodeError:
            raise ServerError("the server's answer is not a ModelInferResponse") from None
        # The dispatcher has checked the sizes, and that scores are finite.
        tables.append(np.frombuffer(contents["score"], "<f4").reshape(count, -1))
        tokens += int(np.frombuffer(contents["num_tokens"], "<i4").sum())
    if len({table.shape[1] for table in tables}) > 1:
        raise ServerError("the servers' models have different labels")
    return np.concatenate(tables), tokens


def _texts_of(message: bytes) -> list[bytes]:
    """The texts are the last input of a request."""
    return unframe(service_pb2.ModelInferRequest.FromString(message).raw_input_contents[-1])


Send = Callable[[Sequence[PreparedMessage]], Awaitable[list[bytes]]]
"""Gives the answers to requests."""

_TEXTS_AT_ONCE = 32
"""Texts of a request: with 300 tokens of 128 dimensions each, its answer has 5 MB."""
_REQUESTS_AT_ONCE = 8
"""The most requests whose answers are in memory."""
_END = 512
"""Bytes at the end of an answer, where its embedding space is."""
_NO_OUTPUT = ("the model gives", "unexpected inference output")
"""Words in the errors of the engine and of Triton for an output that the model does not have."""


def prepare_vectors(model: ServedModel, texts: list[bytes], kind: InputType) -> Iterator[PreparedMessage]:
    """The requests for the vectors of the tokens of texts. kind: "query" or "passage"."""
    parts = batches(texts, lambda part, _first: part, _TEXTS_AT_ONCE, MAX_BYTES)
    options: Options = {"outputs": MULTI_VECTOR, "input_type": kind}
    for request in Call(model.name, "text", parts, options, Deadline(None)).requests():
        yield PreparedMessage(request.message.SerializeToString(), request.count)


async def score_late(
    send: Send, requests: Sequence[PreparedMessage], of_queries: int
) -> tuple[npt.NDArray[np.float32], int, list[bytes]]:
    """The score of each pair, float32 [pairs, 1]; the tokens of all texts; of each answer, the end with its space.

    requests: those of the queries (the first `of_queries`) and those of the texts. There are as many queries as texts,
    or one of either. Raises DispatchError and ServerError.
    """
    queries, rest = requests[:of_queries], requests[of_queries:]
    scoring = _Scoring(sum(one.count for one in rest))
    # A part at a time, because a long text has megabytes of vectors, and outside of the event loop.
    await asyncio.to_thread(scoring.add_queries, queries, await send(queries))
    for first in range(0, len(rest), _REQUESTS_AT_ONCE):
        part = rest[first : first + _REQUESTS_AT_ONCE]
        await asyncio.to_thread(scoring.add_texts, part, await send(part))
    table = np.concatenate(scoring.scores)
    if not np.isfinite(table).all():
        raise ServerError("output multi_vector: a number is not finite")
    return table[:, None], scoring.tokens, scoring.ends


class _Scoring:
    """The scores of the answers so far. texts: their number."""

    def __init__(self, texts: int) -> None:
        self._texts = texts
        self._queries: list[npt.NDArray[np.float32]] = []
        self._row = 0
        self.scores: list[npt.NDArray[np.float32]] = []
        self.tokens = 0
        self.ends: list[bytes] = []

    def add_queries(self, requests: Sequence[PreparedMessage], answers: Sequence[bytes]) -> None:
        """Keep the vectors of the queries."""
        self._queries = self._read(requests, answers)

    def add_texts(self, requests: Sequence[PreparedMessage], answers: Sequence[bytes]) -> None:
        """Score the next texts."""
        vectors, queries = self._read(requests, answers), self._queries
        if len(queries) == 1:
            self.scores.append(maxsim(queries[0], vectors))
        elif self._texts == 1:
            self.scores += [maxsim(query, vectors) for query in queries]
        else:
            self.scores += [maxsim(queries[self._row + row], [own]) for row, own in enumerate(vectors)]
        self._row += len(vectors)

    def _read(self, requests: Sequence[PreparedMessage], answers: Sequence[bytes]) -> list[npt.NDArray[np.float32]]:
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
