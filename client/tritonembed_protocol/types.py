"""The values of the request parameters, and one table of output types.

To add an output type: its name in EmbeddingType, and its row in OUTPUT_TYPES. A new kind of encoder is a function of
the engine (tritonembed_engine.vectors).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

Truncate = Literal["END", "START", "NONE", "CHUNK"]
InputType = Literal["query", "passage"]
Priority = Literal["interactive", "bulk"]
ScoreTruncate = Literal["END", "START", "NONE"]
Activation = Literal["none", "sigmoid", "softmax"]
EmbeddingType = Literal["float", "float16", "int8", "uint8", "binary", "ubinary"]
Output = Literal["dense", "sparse", "multi_vector"]

TRUNCATE: tuple[Truncate, ...] = get_args(Truncate)
INPUT_TYPES: tuple[InputType, ...] = get_args(InputType)
OUTPUTS: tuple[Output, ...] = get_args(Output)
DENSE, SPARSE, MULTI_VECTOR = OUTPUTS

TENSORS: dict[str, str] = {DENSE: "embedding", SPARSE: "sparse", MULTI_VECTOR: "multi_vector"}
"""The output tensor of each output. In the tensor of an output that a request does not ask for, elements are empty."""

SCORE_TRUNCATE: tuple[ScoreTruncate, ...] = get_args(ScoreTruncate)
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
"""What makes a score of a logit. ``softmax`` is over the labels of one text or pair."""

CACHE, CACHE_SALT = "cache", "cache_salt"
"""Parameters of the cache of vectors: whether to use it, and who shares its entries."""

HEALTH_CHECK_ID = "health-check"
"""The id of a request that no caller waits for. Other small requests make a server's batches shorter."""
PRIORITY_LEVELS: dict[str, int | None] = {"interactive": 1, "bulk": None}
"""KServe's levels; None is the default of the model repository, its last level."""


@dataclass(frozen=True, slots=True)
class OutputType:
    """How the numbers of a vector travel.

    encoder: ``cast`` keeps the numbers, ``scale`` is round(127 x), ``signs`` is the bits of x > 0; see
    tritonembed_engine.vectors. packed: eight dimensions share a byte. unit_length: only vectors of length 1 fit.
    """

    dtype: np.dtype[Any]
    encoder: Literal["cast", "scale", "signs"] = "cast"
    packed: bool = False
    unit_length: bool = False

    def columns(self, dimensions: int) -> int:
        """Numbers per vector."""
        return -(-dimensions // 8) if self.packed else dimensions


OUTPUT_TYPES: dict[str, OutputType] = {
    "float": OutputType(np.dtype("<f4")),
    "float16": OutputType(np.dtype("<f2")),
    "int8": OutputType(np.dtype(np.int8), "scale", unit_length=True),
    "uint8": OutputType(np.dtype(np.uint8), "scale", unit_length=True),
    "binary": OutputType(np.dtype(np.int8), "signs", packed=True),
    "ubinary": OutputType(np.dtype(np.uint8), "signs", packed=True),
}
DEFAULT_OUTPUT_TYPE: EmbeddingType = "float"


def output_type(name: str) -> OutputType:
    """The row of an ``embedding_type``. Raises ValueError, which names the known types."""
    try:
        return OUTPUT_TYPES[name]
    except (KeyError, TypeError):
        raise ValueError(f"embedding_type must be one of {', '.join(OUTPUT_TYPES)}") from None
