"""The request parameters of the wire contract."""

from __future__ import annotations

from dataclasses import dataclass
from operator import index
from typing import Any, Literal

from ._errors import InvalidArgumentError

InputType = Literal["query", "passage"]
Truncate = Literal["END", "START", "NONE"]
EmbeddingType = Literal["float", "float16", "int8", "uint8", "binary", "ubinary"]

PACKED_TYPES = ("binary", "ubinary")
MAX_INT64 = 2**63 - 1


@dataclass(frozen=True)
class Options:
    """What a call asks of the model; None leaves the server's default.

    Values are the server's to judge, but for what cannot be sent at all.
    """

    input_type: str | None = None
    truncate: str | None = None
    dimensions: int | None = None
    embedding_type: str = "float"
    normalize: bool | None = None

    def __post_init__(self) -> None:
        if self.dimensions is not None and not 1 <= index(self.dimensions) <= MAX_INT64:
            raise InvalidArgumentError("dimensions must be at least 1, and at most what the model has")

    def write(self, parameters: Any) -> None:
        """Put what differs from the defaults into a request's parameters."""
        if self.input_type is not None:
            parameters["input_type"].string_param = self.input_type
        if self.truncate is not None:
            parameters["truncate"].string_param = self.truncate
        if self.dimensions is not None:
            parameters["dimensions"].int64_param = index(self.dimensions)
        if self.embedding_type != "float":
            parameters["embedding_type"].string_param = self.embedding_type
        if self.normalize is not None:
            parameters["normalize"].bool_param = self.normalize

    @property
    def columns(self) -> int | None:
        """How many columns the result will have, where ``dimensions`` says it."""
        if self.dimensions is None:
            return None
        return -(-self.dimensions // 8) if self.embedding_type in PACKED_TYPES else self.dimensions
