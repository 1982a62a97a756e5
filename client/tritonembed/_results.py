"""What the client gives back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class EmbeddingResult:
    """The embeddings of n texts, in the order of the texts; ``embeddings, num_tokens = result`` works too.

    ``embeddings`` is (n, d), by embedding_type: ``float`` float32, ``float16`` float16, ``int8`` int8, ``uint8`` uint8
    with d the number of dimensions; ``binary`` int8 and ``ubinary`` uint8 with d = ceil(dimensions / 8) packed bytes.
    ``num_tokens`` is int32 (n,): what the model saw of each text, after prompt, truncation and special tokens.
    """

    embeddings: npt.NDArray[Any]
    num_tokens: npt.NDArray[np.int32]

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        return iter((self.embeddings, self.num_tokens))

    def copy(self) -> EmbeddingResult:
        """The same in memory of its own."""
        return EmbeddingResult(self.embeddings.copy(), self.num_tokens.copy())


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a model: ``datatype`` as KServe names it (BYTES, INT32, …), -1 in ``shape`` for any size."""

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
    """The server and those of the client's models that it serves."""

    name: str
    version: str
    extensions: tuple[str, ...]
    models: tuple[ModelInfo, ...]

    dimensions: int | None = None
    """How long the vectors are, from an answer; None where the server gives none now."""
