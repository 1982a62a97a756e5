"""Request parameters (KServe v2 `parameters`): parsed and validated once, the same way in both python models."""

import functools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from tritonembed_engine.errors import InvalidArgument
from tritonembed_protocol.limits import MAX_TEXT_CHUNKS
from tritonembed_protocol.space import SPACE, of_another_space
from tritonembed_protocol.types import DEFAULT_OUTPUT_TYPE, INPUT_TYPES, OUTPUT_TYPES, OUTPUTS, TRUNCATE

T = TypeVar("T")


@dataclass(frozen=True)
class EmbedParameters:
    """The parameters of one request; None means the model's own default."""

    truncate: str | None = None
    chunk_tokens: int | None = None
    chunk_overlap: int = 0
    input_type: str | None = None
    prompt_name: str | None = None
    prompt: str | None = None
    instruction: str | None = None
    dimensions: int | None = None
    spans: tuple[tuple[tuple[int, int], ...], ...] | None = None
    """Per text, start and end of each span in characters."""
    embedding_type: str = DEFAULT_OUTPUT_TYPE
    normalize: bool | None = None
    outputs: tuple[str, ...] | None = None
    """Names of outputs, in the order of OUTPUTS."""
    top_k: int | None = None
    sparse_threshold: float = 0.0
    return_tokens: bool = False
    embedding_space: str | None = None
    """The space that the vectors must be of."""
    adapter: str | None = None
    """The name of a LoRA adapter; None: the model itself."""
    cache: bool = True
    cache_salt: str = ""

    @property
    def salt(self) -> str | None:
        """Requests with the same salt share vectors; None for a request that shares none."""
        return self.cache_salt if self.cache else None


DEFAULTS = EmbedParameters()

LONGEST_KEPT = 4096
"""Characters. What longer parameters mean is not kept: a prompt can have megabytes."""
LONGEST_SALT = 128
"""Characters. It is kept with each vector."""


def parse_parameters(raw: str) -> EmbedParameters:
    """raw: from pb_utils' `request.parameters()`, a JSON object or an empty string.

    Raises InvalidArgument, which names the parameter, if it is unknown, of a wrong type or has a forbidden value.
    """
    return _kept(raw)


class Kept(Generic[T]):
    """A function of what `request.parameters()` returns, called once per distinct string."""

    def __init__(self, parse: Callable[[str], T]) -> None:
        self._parse = parse
        self._once = functools.lru_cache(maxsize=1024)(parse)
        self.cache_info = self._once.cache_info

    def __call__(self, raw: str) -> T:
        """Raises what the function raises, which is not kept. Nor are long strings."""
        return self._once(raw) if len(raw) <= LONGEST_KEPT else self._parse(raw)


def without_tritons(raw: str) -> dict[str, Any]:
    """The parameters that a client set. Triton and its front ends add others under the prefix `triton_`."""
    given = json.loads(raw) if raw else {}
    return {name: value for name, value in given.items() if not name.startswith("triton_")}


def _parse(raw: str) -> EmbedParameters:
    given = without_tritons(raw)
    if not given:
        return DEFAULTS
    for name in given:
        if name not in EmbedParameters.__dataclass_fields__:
            known = ", ".join(EmbedParameters.__dataclass_fields__)
            raise InvalidArgument(_quoted(name), f"unknown parameter; known are {known}")
    for name, allowed in (("truncate", TRUNCATE), ("input_type", INPUT_TYPES), ("embedding_type", tuple(OUTPUT_TYPES))):
        if name in given and given[name] not in allowed:
            raise InvalidArgument(name, f"must be one of {', '.join(allowed)}")
    _check_prompt(given)
    for name, least in (("dimensions", 1), ("chunk_tokens", 1), ("chunk_overlap", 0), ("top_k", 1)):
        if name in given:
            check_number(name, given[name], least)
    for name in ("chunk_tokens", "chunk_overlap"):
        if name in given and given.get("truncate") != "CHUNK":
            raise InvalidArgument(name, "needs truncate=CHUNK")
    if "spans" in given:
        if given.get("truncate", "NONE") != "NONE":
            raise InvalidArgument("spans", "are of a whole text: truncate can only be NONE")
        given["spans"] = _read_spans(given["spans"])
    for name in ("normalize", "return_tokens"):
        if name in given and not isinstance(given[name], bool):
            raise InvalidArgument(name, "must be a bool")
    if "outputs" in given:
        given["outputs"] = _read_outputs(given["outputs"])
    if "sparse_threshold" in given:
        given["sparse_threshold"] = _read_threshold(given["sparse_threshold"])
    for name in (SPACE, "adapter"):
        if name in given and not isinstance(given[name], str):
            raise InvalidArgument(name, "must be a string")
    check_cache(given)
    parameters = EmbedParameters(**given)
    if parameters.normalize is False and OUTPUT_TYPES[parameters.embedding_type].unit_length:
        raise InvalidArgument("embedding_type", f"{parameters.embedding_type} needs normalize=true")
    return parameters


def check_space(wanted: str | None, own: str) -> None:
    """wanted: of a request; None: any. own: the space of the vectors here. Raises InvalidArgument if they differ."""
    if wanted not in (None, own):
        raise InvalidArgument(SPACE, of_another_space(own))


def check_cache(given: Mapping[str, Any]) -> None:
    """Raise InvalidArgument if the parameters about the cache are wrong. given: all parameters."""
    if not isinstance(given.get("cache", True), bool):
        raise InvalidArgument("cache", "must be a bool")
    salt = given.get("cache_salt", "")
    if not isinstance(salt, str) or len(salt) > LONGEST_SALT:
        raise InvalidArgument("cache_salt", f"must be a string of at most {LONGEST_SALT} characters")


_kept = Kept(_parse)


def _check_prompt(given: dict[str, Any]) -> None:
    """Check the parameters that choose the prompt."""
    chosen = [name for name in ("prompt_name", "prompt", "instruction") if name in given]
    for name in chosen:
        if not isinstance(given[name], str):
            raise InvalidArgument(name, "must be a string")
    if len(chosen) > 1:
        raise InvalidArgument(chosen[-1], f"can't be given together with {chosen[0]}")
    if "instruction" not in given:
        return
    if not given["instruction"].strip():
        raise InvalidArgument("instruction", "must not be empty")
    if given.get("input_type") == "passage":
        raise InvalidArgument("instruction", "is for queries: input_type can't be passage")


def _read_spans(value: Any) -> tuple[tuple[tuple[int, int], ...], ...]:
    """`[[[start, end], …], …]` as JSON, one list per text."""
    try:
        texts = json.loads(value) if isinstance(value, str) else None
        found = tuple(tuple((start, end) for start, end in spans) for spans in texts)  # type: ignore[union-attr]
    except (ValueError, TypeError, RecursionError):
        raise InvalidArgument("spans", "must be JSON: a list of [start, end] per text") from None
    numbers = [number for spans in found for span in spans for number in span]
    if not found or not all(found) or not all(type(number) is int and 0 <= number < 1 << 31 for number in numbers):
        raise InvalidArgument("spans", "must be JSON: a list of [start, end] per text")
    if max(map(len, found)) > MAX_TEXT_CHUNKS:
        raise InvalidArgument("spans", f"more than {MAX_TEXT_CHUNKS} of one text")
    return found


def _read_outputs(value: Any) -> tuple[str, ...]:
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else []
    if not names or not set(names) <= set(OUTPUTS) or len(set(names)) < len(names):
        raise InvalidArgument("outputs", f"must be one or more of {', '.join(OUTPUTS)}, each once, with commas")
    return tuple(name for name in OUTPUTS if name in names)


def _read_threshold(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise InvalidArgument("sparse_threshold", "must be a number of at least 0")
    return float(value)


def check_number(name: str, value: Any, least: int) -> None:
    """Raise InvalidArgument if a parameter's value is no whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidArgument(name, "must be an integer")
    if value < least:
        raise InvalidArgument(name, f"must be at least {least}")


def _quoted(name: str) -> str:
    """A parameter's name as a client sent it, made short and printable."""
    return repr(name[:40])
