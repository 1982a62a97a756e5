"""The chunks of a text on their way from `tokenizer` to `embedder`, and one vector of the vectors of its chunks.

Under `truncate=CHUNK`, an element of the tensor `token_ids` is int32 [MARK, count, then the number of tokens, the start
and the end of each chunk, then all ids]. MARK is no token id, so it differs from an element that is just ids.

With the parameter `spans` it is int32 [SPANS_MARK, count, then the first token, the one after the last, the start and
the end of each span, then the ids of the whole text].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tritonembed_engine.errors import InvalidArgument
from tritonembed_engine.token_ids import Spans
from tritonembed_engine.vectors import Vectors, normalized
from tritonembed_protocol.framing import rows_as_bytes
from tritonembed_protocol.limits import MAX_REQUEST_CHUNKS

MARK = -1
SPANS_MARK = -2
_MARK_BYTES, _SPANS_MARK_BYTES = (np.array([mark], "<i4").tobytes() for mark in (MARK, SPANS_MARK))
_INT = 4
"""Bytes."""
_COLUMNS = 3
"""Numbers per chunk before the ids."""
_SPAN_COLUMNS = 4
MOST_OVERLAP = 4
"""The most tokens in all spans of a text, in multiples of the text's own."""


class Chunk(NamedTuple):
    """A part of a text, from character `start` to `end`. ids: little-endian int32, with prompt and special tokens."""

    ids: bytes
    start: int
    end: int


def pack(chunks: Sequence[Chunk]) -> bytes:
    """One element of `token_ids`."""
    header = [MARK, len(chunks)]
    for chunk in chunks:
        header += (len(chunk.ids) // _INT, chunk.start, chunk.end)
    return np.array(header, "<i4").tobytes() + b"".join(chunk.ids for chunk in chunks)


@dataclass(frozen=True)
class Chunks:
    """The chunks of a request's texts. counts: int [texts], all above 0.

    offsets: int32 [chunks, 2], start and end of each chunk in characters of its text; -1 for an element of mere ids.
    """

    counts: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int32]

    def sums(self, numbers: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """The sum of each text's numbers. numbers: int32 [chunks]. Returns int32 [texts]."""
        summed: npt.NDArray[np.int32] = np.add.reduceat(numbers, self._starts(), dtype=np.int32)
        return summed

    def means(self, vectors: Vectors, tokens: npt.NDArray[np.int32], normalize: bool) -> Vectors:
        """The mean of each text's chunks, weighted by their tokens: float32 [texts, dimensions].

        vectors: float32 [chunks, dimensions]. tokens: int32 [chunks]. normalize: whether the means get length 1.
        """
        if len(self.counts) == len(vectors):
            return vectors
        weights = tokens.astype(np.float32)
        shares = weights / np.repeat(np.add.reduceat(weights, self._starts()), self.counts)
        means: Vectors = np.add.reduceat(vectors * shares[:, None], self._starts(), axis=0)
        return normalized(means) if normalize else means

    def spans(self, tokens: npt.NDArray[np.int32]) -> list[bytes]:
        """Per text, little-endian int32 [chunks, 3]: start, end and tokens of each chunk. tokens: int32 [chunks]."""
        return self.split(rows_as_bytes(np.column_stack((self.offsets, tokens))))

    def split(self, rows: Sequence[bytes]) -> list[bytes]:
        """Each text's rows, joined. rows: one per chunk."""
        ends = np.cumsum(self.counts).tolist()
        starts = [0, *ends[:-1]]
        return [b"".join(rows[start:end]) for start, end in zip(starts, ends, strict=True)]

    def _starts(self) -> npt.NDArray[np.intp]:
        starts: npt.NDArray[np.intp] = np.cumsum(self.counts) - self.counts
        return starts


def unpack(elements: Sequence[bytes]) -> tuple[list[bytes], Chunks]:
    """The ids of all chunks of a request, in order, and the texts to which they belong.

    elements: of `token_ids`. Raises InvalidArgument, which names the element.
    """
    ids: list[bytes] = []
    counts: list[int] = []
    offsets: list[npt.NDArray[np.int32]] = []
    for index, element in enumerate(elements):
        if element.startswith(_MARK_BYTES):
            found = _read(element, index)
            ids += found[0]
            offsets.append(found[1])
            counts.append(len(found[0]))
        else:
            ids.append(element)
            offsets.append(np.full((1, 2), -1, np.int32))
            counts.append(1)
        if len(ids) > MAX_REQUEST_CHUNKS:
            raise too_many_chunks("token_ids")
    return ids, Chunks(np.array(counts), np.concatenate(offsets))


class Span(NamedTuple):
    """A part of a text. first, stop: indices of its tokens in the text's ids. start, end: characters of the text."""

    first: int
    stop: int
    start: int
    end: int


def pack_spans(ids: Sequence[int], spans: Sequence[Span]) -> bytes:
    """One element of `token_ids`. ids: of the text, with prompt and special tokens."""
    return np.array([SPANS_MARK, len(spans), *(number for span in spans for number in span), *ids], "<i4").tobytes()


def unpack_spans(elements: Sequence[bytes]) -> tuple[list[bytes], Chunks, Spans]:
    """The ids of each text of a request, the characters of its spans as Chunks, and their tokens.

    elements: of `token_ids`. Raises InvalidArgument, which names the element.
    """
    ids: list[bytes] = []
    tables: list[npt.NDArray[np.int32]] = []
    for index, element in enumerate(elements):
        table, begin = _table(element, index, _SPANS_MARK_BYTES, _SPAN_COLUMNS)
        ids.append(element[begin:])
        tokens = len(ids[-1]) // _INT
        firsts, stops = table[:, 0].astype(np.int64), table[:, 1].astype(np.int64)
        if firsts.min() < 0 or (firsts >= stops).any() or stops.max() > tokens:
            raise _wrong(index)
        if (stops - firsts).sum() > MOST_OVERLAP * tokens:
            problem = f"those of sentence {index} have more than {MOST_OVERLAP} times the tokens of the sentence"
            raise InvalidArgument("spans", problem)
        tables.append(table)
    together = np.concatenate(tables)
    if len(together) > MAX_REQUEST_CHUNKS:
        raise InvalidArgument("spans", f"more than {MAX_REQUEST_CHUNKS} in a request")
    counts = np.array([len(table) for table in tables], np.int64)
    return ids, Chunks(counts, together[:, 2:]), Spans(counts, together[:, 0], together[:, 1])


def too_many_chunks(tensor: str) -> InvalidArgument:
    """A request of more chunks than are allowed. tensor: its input."""
    return InvalidArgument(tensor, f"the request has more than {MAX_REQUEST_CHUNKS} chunks; send fewer texts at once")


def _read(element: bytes, index: int) -> tuple[list[bytes], npt.NDArray[np.int32]]:
    """The ids of each chunk, and int32 [chunks, 2]."""
    table, begin = _table(element, index, _MARK_BYTES, _COLUMNS)
    sizes = table[:, 0].astype(np.int64) * _INT
    if sizes.min() <= 0 or sizes.sum() != len(element) - begin:
        raise _wrong(index)
    ends = (begin + np.cumsum(sizes)).tolist()
    starts = [begin, *ends[:-1]]
    return [element[start:end] for start, end in zip(starts, ends, strict=True)], table[:, 1:]


def _table(element: bytes, index: int, mark: bytes, columns: int) -> tuple[npt.NDArray[np.int32], int]:
    """The header of an element after its mark, int32 [count, columns], and where the ids begin, in bytes."""
    count = int.from_bytes(element[_INT : 2 * _INT], "little", signed=True)
    begin = (2 + columns * count) * _INT
    if not element.startswith(mark) or len(element) % _INT or count < 1 or len(element) < begin:
        raise _wrong(index)
    return np.frombuffer(element, "<i4", columns * count, 2 * _INT).reshape(count, columns), begin


def _wrong(index: int) -> InvalidArgument:
    return InvalidArgument("token_ids", f"sentence {index} has a header of chunks that does not fit it")
