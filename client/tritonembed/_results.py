"""What the client returns: embeddings, collected from the answers of one call, and facts about a server."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from tritonembed_protocol.space import model_part
from tritonembed_protocol.types import OUTPUTS

from ._errors import InvalidArgumentError, ServerError

Element = TypeVar("Element")


@dataclass(frozen=True, eq=False)
class EmbeddingResult:
    """The embeddings of n texts, in the order of the texts; ``embeddings, num_tokens = result`` works, too.

    ``embeddings`` is (n, d), with the dtype of its embedding_type: float32 for ``float``, float16, int8 or uint8, where
    d is the number of dimensions; int8 for ``binary`` and uint8 for ``ubinary``, where d = ceil(dimensions / 8) bytes.
    ``num_tokens`` is int32 (n,): the tokens that the model saw, after prompt, truncation and special tokens.
    ``embedding_space`` names the model and the precision that made the vectors. It is None if no server reports it,
    and if the parts of the result, or servers behind one address, have different precisions.

    ``sparse`` and ``multi_vector`` are there if ``outputs`` asked for them: per text a SparseVector, and an array of
    (tokens, d) with the dtype of the embedding_type. Without ``dense`` in ``outputs``, ``embeddings`` is (n, 0).
    """

    embeddings: npt.NDArray[Any]
    num_tokens: npt.NDArray[np.int32]
    embedding_space: str | None = None
    sparse: list[SparseVector] | None = None
    multi_vector: list[npt.NDArray[Any]] | None = None

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        return iter((self.embeddings, self.num_tokens))

    def copy(self) -> EmbeddingResult:
        """A copy that owns its memory."""
        # What is sparse or a vector per token owns its bytes.
        return replace(self, embeddings=self.embeddings.copy(), num_tokens=self.num_tokens.copy())


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a model. ``datatype``: KServe's name (BYTES, INT32, …). -1 in ``shape`` is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelInfo:
    """One model that the server has loaded; ``parameters`` are those of its configuration, as text."""

    name: str
    versions: tuple[str, ...]
    max_batch_size: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    parameters: Mapping[str, str]


@dataclass(frozen=True)
class ServerInfo:
    """A server, and the client's models that it serves."""

    name: str
    version: str
    extensions: tuple[str, ...]
    models: tuple[ModelInfo, ...]

    dimensions: int | None = None
    """The vectors' dimensions, found by an inference; None if the server cannot embed now."""

    embedding_space: str | None = None
    """The model and the precision of its vectors; None if the server can't report it now."""

    quantization_quality: float | None = None
    """Of a model that the server quantizes to int8: the part of the ten nearest neighbours of its calibration texts
    that int8 keeps, from 0 to 1. None of any other model, or if the server can't report it now."""


def rows_of(inputs: Iterable[object]) -> int | None:
    """The number of inputs; None if they come one by one, as from a generator."""
    return len(inputs) if isinstance(inputs, Sized) else None


class CommonSpace:
    """The embedding space of several answers: ``found`` is None if it is unknown, or if their precisions differ."""

    def __init__(self) -> None:
        self.found: str | None = None
        self._first: str | None = None

    def add(self, space: str | None) -> None:
        """Add the space of the next answer. Raises ServerError if another model made it."""
        if self._first is None:
            self.found = self._first = space
        elif space is not None and model_part(space) != model_part(self._first):
            # Vectors of two models must not be mixed.
            raise ServerError("the model changed during the call")
        elif space != self._first:
            self.found = None


class Collector:
    """Copies answers, in order, into one array, while the next answers are still in flight.

    ``rows``: the number of vectors, if it is known; then the array is allocated once.
    """

    def __init__(self, rows: int | None) -> None:
        self._capacity = rows or 0
        self._count = 0
        self._embeddings: npt.NDArray[Any] | None = None
        self._num_tokens = np.empty(self._capacity, np.int32)
        self._space = CommonSpace()
        self._sparse: list[SparseVector] | None = None
        self._multi_vector: list[npt.NDArray[Any]] | None = None

    def add(self, answer: EmbeddingResult) -> None:
        """Add the next answer; all answers have the same width. Raises ServerError if another model made it."""
        self._space.add(answer.embedding_space)
        if self._embeddings is None:
            self._embeddings = np.empty((self._capacity, answer.embeddings.shape[1]), answer.embeddings.dtype)
        end = self._count + len(answer.num_tokens)
        if end > self._capacity:
            self._resize(max(end, 2 * self._capacity))
        self._embeddings[self._count : end] = answer.embeddings
        self._num_tokens[self._count : end] = answer.num_tokens
        self._sparse = _joined(self._sparse, answer.sparse)
        self._multi_vector = _joined(self._multi_vector, answer.multi_vector)
        self._count = end

    def result(self) -> EmbeddingResult | None:
        """Everything that was added; None if that is nothing."""
        if self._embeddings is None:
            return None
        if self._capacity > self._count:
            self._resize(self._count)
        return EmbeddingResult(self._embeddings, self._num_tokens, self._space.found, self._sparse, self._multi_vector)

    def _resize(self, rows: int) -> None:
        # refcheck would fail while a debugger or a profiler looks at the array, which has no other user yet.
        assert self._embeddings is not None
        self._embeddings.resize((rows, self._embeddings.shape[1]), refcheck=False)
        self._num_tokens.resize(rows, refcheck=False)
        self._capacity = rows


def _joined(before: list[Element] | None, more: list[Element] | None) -> list[Element] | None:
    """``before``, with ``more`` behind it; None if there is neither."""
    if before is None or more is None:
        return more if before is None else before
    before.extend(more)
    return before


def server_info(
    server: Any, models: Iterable[ModelInfo], dimensions: int | None, space: str | None, quality: float | None = None
) -> ServerInfo:
    """ServerInfo of a ServerMetadataResponse, its models, and what is known of its vectors."""
    about = server.name, server.version, tuple(server.extensions), tuple(models)
    return ServerInfo(*about, dimensions, space, quality)


def model_info(metadata: Any, config: Any) -> ModelInfo:
    """ModelInfo of a ModelMetadataResponse and a ModelConfigResponse."""
    parameters = {name: value.string_value for name, value in config.config.parameters.items()}
    return ModelInfo(
        name=metadata.name,
        versions=tuple(metadata.versions),
        max_batch_size=config.config.max_batch_size,
        inputs=_tensors(metadata.inputs),
        outputs=_tensors(metadata.outputs),
        parameters=parameters,
    )


def _tensors(tensors: Iterable[Any]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(tensor.name, tensor.datatype, tuple(tensor.shape)) for tensor in tensors)


@dataclass(frozen=True, eq=False)
class SparseVector:
    """The weights of a text's tokens; every other token of the vocabulary has the weight 0.

    ``ids`` is int32 (n,), ids of the model's vocabulary in ascending order. ``weights`` is float32 (n,), all above 0.
    ``tokens`` has the tokens of these ids, as the vocabulary writes them, if ``return_tokens`` asked for them.
    """

    ids: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    tokens: tuple[str, ...] | None = None

    def dot(self, other: SparseVector) -> float:
        """The score of two texts: the sum over their common ids of the product of the weights."""
        _, own, others = np.intersect1d(self.ids, other.ids, assume_unique=True, return_indices=True)
        return float(self.weights[own] @ other.weights[others])

    def as_dict(self) -> dict[int, float]:
        """Weights by id."""
        return dict(zip(self.ids.tolist(), self.weights.tolist(), strict=True))


def maxsim(query: npt.ArrayLike, documents: Iterable[npt.ArrayLike]) -> npt.NDArray[np.float32]:
    """Late interaction scores, float32 (n,): for each vector of the query the largest dot product with any of the
    document's vectors, summed.

    ``query``: (tokens, d). ``documents``: n arrays of (tokens, d); the score of one without tokens is 0.
    """
    left = np.asarray(query, np.float32)
    rows = [np.asarray(document, np.float32) for document in documents]
    return np.array([(left @ row.T).max(axis=1).sum() if row.size else 0.0 for row in rows], np.float32)


def names_of(outputs: Any) -> tuple[str, ...] | None:
    """The outputs that a call asks for, in the order of OUTPUTS; None: the model's default.

    outputs: their names, as a list or with commas. Raises InvalidArgumentError for other names, none, or one twice.
    """
    if outputs is None:
        return None
    listed = outputs.split(",") if isinstance(outputs, str) else list(outputs)
    names = [name.strip() if isinstance(name, str) else name for name in listed]
    if not names or any(name not in OUTPUTS for name in names) or len(set(names)) < len(names):
        raise InvalidArgumentError(f"outputs must be one or more of {', '.join(OUTPUTS)}, each once")
    return tuple(name for name in OUTPUTS if name in names)


def read_sparse(elements: Sequence[bytes]) -> list[SparseVector]:
    """The weights of each text. Raises ServerError if the bytes are not weights."""
    return [_read_weights(element) for element in elements]


def _read_weights(element: bytes) -> SparseVector:
    count = int.from_bytes(element[:4], "little")
    middle, end = 4 + 4 * count, 4 + 8 * count
    if len(element) < max(end, 4):
        raise ServerError("output sparse: an element is shorter than its count")
    tokens = None
    if len(element) > end:
        try:
            tokens = tuple(map(str, json.loads(element[end:])))
        except (ValueError, TypeError):
            tokens = ()
        if len(tokens) != count:
            raise ServerError("output sparse: the tokens of an element do not fit its ids")
    ids, weights = np.frombuffer(element[4:middle], "<i4"), np.frombuffer(element[middle:end], "<f4")
    return SparseVector(ids, weights, tokens)


def read_multi_vector(elements: Sequence[bytes], dtype: np.dtype[Any]) -> list[npt.NDArray[Any]]:
    """The vectors of each text, (tokens, d). Raises ServerError if the bytes are not vectors."""
    counts = [int.from_bytes(element[:4], "little") for element in elements]
    columns = 0
    for element, count in zip(elements, counts, strict=True):
        width = count * dtype.itemsize
        if len(element) < 4 or (len(element) - 4) % (width or len(element)):
            raise ServerError(f"output multi_vector: an element is not a count and vectors of {dtype.name}")
        columns = columns or ((len(element) - 4) // width if width else 0)
    if any(
        len(element) != 4 + count * columns * dtype.itemsize for element, count in zip(elements, counts, strict=True)
    ):
        raise ServerError("output multi_vector: the number of dimensions changes within the answer")
    return [
        np.frombuffer(element, dtype, offset=4).reshape(count, columns)
        for element, count in zip(elements, counts, strict=True)
    ]
