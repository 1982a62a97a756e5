"""What the client gives back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Embeddings:
    """The vectors of n texts, in the order of the texts; ``vectors, num_tokens = embeddings`` works too.

    ``vectors`` is (n, d), by embedding_type: ``float`` float32, ``float16`` float16, ``int8`` int8, ``uint8`` uint8 with
    d dimensions; ``binary`` int8 and ``ubinary`` uint8 with ceil(dimensions / 8) columns of packed bits.
    ``num_tokens`` is int32 (n,): what the model saw of each text, after prompt, truncation and special tokens.
    """

    vectors: npt.NDArray[Any]
    num_tokens: npt.NDArray[np.int32]

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        return iter((self.vectors, self.num_tokens))


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a model: ``datatype`` as KServe names it (BYTES, INT32, …), -1 in ``shape`` for any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelInfo:
    """One model that the server has loaded."""

    name: str
    versions: tuple[str, ...]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


@dataclass(frozen=True)
class ServerInfo:
    """The server and those of the client's models that it serves."""

    name: str
    version: str
    extensions: tuple[str, ...]
    models: tuple[ModelInfo, ...]
