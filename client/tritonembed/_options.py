"""The request parameters of the wire contract."""

from __future__ import annotations

from dataclasses import dataclass
from operator import index
from typing import Any, Literal

from ._errors import InvalidArgumentError

InputType = Literal["query", "passage"]
Truncate = Literal["END", "START", "NONE"]
EmbeddingType = Literal["float", "float16", "int8", "uint8", "binary", "ubinary"]
Priority = Literal["interactive", "bulk"]

PACKED_TYPES = ("binary", "ubinary")
MAX_INT64 = 2**63 - 1
# KServe's levels; None is the default of the model repository, the last one.
PRIORITY_LEVELS: dict[str, int | None] = {"interactive": 1, "bulk": None}


@dataclass(frozen=True)
class Options:
    """What a call asks of the server; None leaves the server's default.

    Values are the server's to judge, but for what cannot be sent at all.
    """

    input_type: str | None = None
    prompt_name: str | None = None
    prompt: str | None = None
    truncate: str | None = None
    dimensions: int | None = None
    embedding_type: str = "float"
    normalize: bool | None = None
    priority: str = "bulk"

    def __post_init__(self) -> None:
        if self.dimensions is not None and not 1 <= index(self.dimensions) <= MAX_INT64:
            raise InvalidArgumentError("dimensions must be at least 1, and at most what the model has")
        if self.priority not in PRIORITY_LEVELS:
            raise InvalidArgumentError(f"priority must be one of {', '.join(PRIORITY_LEVELS)}")
        for name in ("prompt_name", "prompt"):
            _check_text(name, getattr(self, name))

    def write(self, parameters: Any) -> None:
        """Put what differs from the defaults into a request's parameters."""
        if self.input_type is not None:
            parameters["input_type"].string_param = self.input_type
        if self.prompt_name is not None:
            parameters["prompt_name"].string_param = self.prompt_name
        if self.prompt is not None:
            parameters["prompt"].string_param = self.prompt
        if self.truncate is not None:
            parameters["truncate"].string_param = self.truncate
        if self.dimensions is not None:
            parameters["dimensions"].int64_param = index(self.dimensions)
        if self.embedding_type != "float":
            parameters["embedding_type"].string_param = self.embedding_type
        if self.normalize is not None:
            parameters["normalize"].bool_param = self.normalize
        level = PRIORITY_LEVELS[self.priority]
        if level is not None:
            parameters["priority"].uint64_param = level

    @property
    def columns(self) -> int | None:
        """How many columns the result will have, where ``dimensions`` says it."""
        if self.dimensions is None:
            return None
        return -(-self.dimensions // 8) if self.embedding_type in PACKED_TYPES else self.dimensions


def _check_text(name: str, text: str | None) -> None:
    """Raise for what is no str (TypeError) or has no UTF-8 form (InvalidArgumentError), without its words."""
    if text is None:
        return
    if not isinstance(text, str):
        raise TypeError(f"{name} is {type(text).__name__}, not str")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        place = error.start
    else:
        return
    # Raised out here, so that no cause carries the text.
    raise InvalidArgumentError(f"{name}: a lone surrogate at character {place} has no UTF-8 form")
