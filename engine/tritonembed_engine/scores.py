"""Rerankers and classifiers: the parameters of their requests (KServe v2 `parameters`), and from logits to scores."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tritonembed_engine.errors import InvalidArgument
from tritonembed_engine.parameters import LONGEST_KEPT, check_cache, check_number, without_tritons
from tritonembed_protocol.types import ACTIVATIONS, SCORE_TRUNCATE, Activation

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ScoreParameters:
    """The parameters of one request; None means the model's own default."""

    truncate: str | None = None
    """The end that a text loses if a pair is too long; NONE refuses it. A query is never cut."""
    activation: str | None = None
    instruction: str | None = None
    max_text_tokens: int | None = None
    """The most tokens of a text, if the model takes more."""
    embedding_space: str | None = None
    """The space that the scores must be of."""
    cache: bool = True
    cache_salt: str = ""

    @property
    def salt(self) -> str | None:
        """See `EmbedParameters`."""
        return self.cache_salt if self.cache else None


DEFAULTS = ScoreParameters()


def parse_score_parameters(raw: str) -> ScoreParameters:
    """raw: from pb_utils' `request.parameters()`, a JSON object or an empty string.

    Raises InvalidArgument, which names the parameter, if it is unknown, of a wrong type or has a forbidden value.
    """
    return _kept(raw) if len(raw) <= LONGEST_KEPT else _parse(raw)


def _parse(raw: str) -> ScoreParameters:
    given: dict[str, Any] = without_tritons(raw)
    if not given:
        return DEFAULTS
    for name, value in given.items():
        if name not in ScoreParameters.__dataclass_fields__:
            known = ", ".join(ScoreParameters.__dataclass_fields__)
            raise InvalidArgument(repr(name[:40]), f"unknown parameter of a reranker; known are {known}")
        if name == "max_text_tokens":
            check_number(name, value, 1)
        elif not name.startswith("cache") and not isinstance(value, str):
            raise InvalidArgument(name, "must be a string")
    check_cache(given)
    for name, allowed in (("truncate", SCORE_TRUNCATE), ("activation", ACTIVATIONS)):
        if name in given and given[name] not in allowed:
            raise InvalidArgument(name, f"must be one of {', '.join(allowed)}")
    if "max_text_tokens" in given and given.get("truncate") == "NONE":
        raise InvalidArgument("max_text_tokens", "cuts texts: truncate can't be NONE")
    if not given.get("instruction", "x").strip():
        raise InvalidArgument("instruction", "must not be empty")
    return ScoreParameters(**given)


_kept = functools.lru_cache(maxsize=1024)(_parse)


def activate(logits: Scores, activation: Activation) -> Scores:
    """Scores of logits, float32 [pairs or texts, labels]. softmax is over the labels."""
    if activation == "none":
        return logits
    wide = logits.astype(np.float64)
    if activation == "sigmoid":
        # In this form there is no overflow for large negative logits.
        small = np.exp(-np.abs(wide))
        return np.where(wide >= 0, 1 / (1 + small), small / (1 + small)).astype(np.float32)
    exponents = np.exp(wide - wide.max(axis=1, keepdims=True))
    scores: Scores = (exponents / exponents.sum(axis=1, keepdims=True)).astype(np.float32)
    return scores
