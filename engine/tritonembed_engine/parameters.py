"""Request parameters (KServe v2 `parameters`): parsed and validated once, the same way in both python models."""

import functools
import json
from dataclasses import dataclass
from typing import Any

from tritonembed_engine.errors import InvalidArgument

TRUNCATE = ("END", "START", "NONE")
INPUT_TYPES = ("query", "passage")
EMBEDDING_TYPES = ("float", "float16", "int8", "uint8", "binary", "ubinary")


@dataclass(frozen=True)
class EmbedParameters:
    """What one request asks for; None means the model's own default."""

    truncate: str | None = None
    input_type: str | None = None
    prompt_name: str | None = None
    prompt: str | None = None
    dimensions: int | None = None
    embedding_type: str = "float"
    normalize: bool | None = None


DEFAULTS = EmbedParameters()

LONGEST_KEPT = 4096
"""Characters of parameters that are parsed once: a prompt can have megabytes."""


def parse_parameters(raw: str) -> EmbedParameters:
    """`raw` is what pb_utils' `request.parameters()` gives: a JSON object, or an empty string.

    Raises InvalidArgument, naming the parameter, for an unknown one, a wrong type or a value that is not allowed.
    """
    return _kept(raw) if len(raw) <= LONGEST_KEPT else _parse(raw)


def _parse(raw: str) -> EmbedParameters:
    given = json.loads(raw) if raw else {}
    # Triton and its front ends add parameters of their own under this prefix.
    given = {name: value for name, value in given.items() if not name.startswith("triton_")}
    if not given:
        return DEFAULTS
    for name in given:
        if name not in EmbedParameters.__dataclass_fields__:
            known = ", ".join(EmbedParameters.__dataclass_fields__)
            raise InvalidArgument(_quoted(name), f"unknown parameter; known are {known}")
    for name, allowed in (("truncate", TRUNCATE), ("input_type", INPUT_TYPES), ("embedding_type", EMBEDDING_TYPES)):
        if name in given and given[name] not in allowed:
            raise InvalidArgument(name, f"must be one of {', '.join(allowed)}")
    for name in ("prompt_name", "prompt"):
        if name in given and not isinstance(given[name], str):
            raise InvalidArgument(name, "must be a string")
    if "prompt_name" in given and "prompt" in given:
        raise InvalidArgument("prompt", "can't be given beside prompt_name")
    if "dimensions" in given:
        _check_dimensions(given["dimensions"])
    if "normalize" in given and not isinstance(given["normalize"], bool):
        raise InvalidArgument("normalize", "must be a bool")
    parameters = EmbedParameters(**given)
    if parameters.normalize is False and parameters.embedding_type in ("int8", "uint8"):
        raise InvalidArgument("embedding_type", f"{parameters.embedding_type} needs normalize=true")
    return parameters


_kept = functools.lru_cache(maxsize=1024)(_parse)


def _check_dimensions(value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidArgument("dimensions", "must be an integer")
    if value < 1:
        raise InvalidArgument("dimensions", "must be at least 1")


def _quoted(name: str) -> str:
    """A parameter's name as a client sent it, made short and printable."""
    return repr(name[:40])
