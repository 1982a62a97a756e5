"""The chunks of long texts: one vector per chunk, and where it is in its text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import index
from typing import Any

import numpy as np
import numpy.typing as npt

from tritonembed_protocol.framing import FramingError, unframe

from ._errors import ServerError
from ._results import CommonSpace
from .request import Call, ChunkOptions, Options, PreparedRequest, PromptOptions, check_names, contents_of

TextSpans = Sequence[tuple[int, int]]
"""Start and end of parts of one text, in characters."""

OUTPUTS = ("chunk_embeddings", "chunk_spans")
_COLUMNS = 3


@dataclass(frozen=True, eq=False)
class ChunkResult:
    """The m chunks of n texts, in the order of the texts.

    ``embeddings`` is (m, d), with the dtype of its embedding_type, as in EmbeddingResult. ``text_index`` is int64 (m,):
    the text that a chunk is part of. ``offsets`` is int32 (m, 2): chunk i is ``text[start:end]``. ``num_tokens`` is
    int32 (m,): the tokens of each chunk, with its prompt and special tokens; of ``embed_spans`` without.
    ``embedding_space`` is that of EmbeddingResult.
    """

    embeddings: npt.NDArray[Any]
    text_index: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int32]
    num_tokens: npt.NDArray[np.int32]
    embedding_space: str | None = None


class ChunkCall:
    """A call for the chunks of texts, as `Call` is for their vectors. call: its requests."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._first = 0

    @classmethod
    def of_texts(
        cls, model: str, texts: Iterable[str], options: ChunkOptions, batch_size: int, timeout: float | None
    ) -> ChunkCall:
        """A call whose time runs from now on."""
        check_names(options, ChunkOptions)
        chunked: Options = {**options, "truncate": "CHUNK"}
        return cls(Call.of_texts(model, texts, chunked, batch_size, timeout, outputs=OUTPUTS))

    def requests(self) -> Iterator[PreparedRequest]:
        """The requests, in order."""
        return self._call.requests()

    def read(self, count: int, response: Any) -> ChunkResult:
        """The chunks of the answer to the next request, with ``count`` texts. Raises ServerError."""
        contents = contents_of(response, OUTPUTS)
        try:
            rows, spans = (unframe(contents[output]) for output in OUTPUTS)
        except FramingError as error:
            raise ServerError(f"the chunks of the answer: {error}") from None
        if not len(rows) == len(spans) == count:
            raise ServerError(f"the answer has the chunks of {len(rows)} texts, not of {count}")
        if any(not span or len(span) % (4 * _COLUMNS) for span in spans):
            raise ServerError("output chunk_spans: a text has no chunks, or a part of one")
        counts = [len(span) // (4 * _COLUMNS) for span in spans]
        table = np.frombuffer(b"".join(spans), "<i4").reshape(-1, _COLUMNS)
        first, self._first = self._first, self._first + count
        text_index = np.repeat(np.arange(first, first + count), counts)
        space = self._call.space_of(response)
        return ChunkResult(self._vectors(rows, counts), text_index, table[:, :2], table[:, 2], space)

    def _vectors(self, rows: Sequence[bytes], counts: Sequence[int]) -> npt.NDArray[Any]:
        size = len(rows[0]) // counts[0]
        fits = all(len(row) == size * count for row, count in zip(rows, counts, strict=True))
        if not fits or not size or size % self._call.dtype.itemsize:
            raise ServerError("output chunk_embeddings: its bytes are not the vectors of the chunks")
        return np.frombuffer(b"".join(rows), self._call.dtype).reshape(sum(counts), -1)


class SpanCall(ChunkCall):
    """A call for the vectors of given parts of texts. spans: those of each text of ``call``."""

    def __init__(self, call: Call, spans: Iterable[TextSpans]) -> None:
        super().__init__(call)
        self._spans = iter(spans)

    @classmethod
    def of_spans(
        cls,
        model: str,
        texts: Iterable[str],
        spans: Iterable[TextSpans],
        options: PromptOptions,
        batch_size: int,
        timeout: float | None,
    ) -> SpanCall:
        """A call whose time runs from now on."""
        check_names(options, PromptOptions)
        return cls(Call.of_texts(model, texts, options, batch_size, timeout, outputs=OUTPUTS), spans)

    def requests(self) -> Iterator[PreparedRequest]:
        """The requests, in order. Raises ValueError if there are fewer spans than texts."""
        for request in super().requests():
            part = list(islice(self._spans, request.count))
            if len(part) < request.count:
                raise ValueError("spans has fewer elements than texts")
            numbers = [[[index(start), index(end)] for start, end in of_text] for of_text in part]
            request.message.parameters["spans"].string_param = json.dumps(numbers)
            yield request


class ChunkCollector:
    """Joins the results of a call's requests."""

    def __init__(self) -> None:
        self._parts: list[ChunkResult] = []
        self._space = CommonSpace()

    def add(self, part: ChunkResult) -> None:
        """Add the next result. Raises ServerError if its width differs, or if another model made it."""
        self._space.add(part.embedding_space)
        if self._parts and part.embeddings.shape[1] != self._parts[0].embeddings.shape[1]:
            # Another model was loaded meanwhile.
            raise ServerError("output chunk_embeddings: the number of dimensions changed during the call")
        self._parts.append(part)

    def result(self) -> ChunkResult | None:
        """Everything that was added; None if that is nothing."""
        if not self._parts:
            return None
        return ChunkResult(
            np.concatenate([part.embeddings for part in self._parts]),
            np.concatenate([part.text_index for part in self._parts]),
            np.concatenate([part.offsets for part in self._parts]),
            np.concatenate([part.num_tokens for part in self._parts]),
            self._space.found,
        )


def no_chunks(embeddings: npt.NDArray[Any]) -> ChunkResult:
    """The result of no texts. embeddings: (0, d)."""
    return ChunkResult(embeddings, np.empty(0, np.int64), np.empty((0, 2), np.int32), np.empty(0, np.int32))
