"""The list of cases. A case is a function that writes one model folder; its name is the case's name."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import Any

Writer = Callable[[Path], None]

FILES = (
    "bert",
    "layouts",
    "dense",
    "modules",
    "settings",
    "own_tokenizers",
    "roberta",
    "encoders",
    "modernbert",
    "nomic",
    "gte",
    "jina_v2",
    "decoders",
    "quantized",
    "static",
    "clip",
    "sparse",
    "multi_vector",
    "rerankers",
    "refused",
)
"""Modules of this package that define cases, in the order of the table."""


@dataclass(frozen=True)
class FamilyCase:
    """One model folder, and how it is loaded."""

    name: str
    family: str
    write: Writer
    trusted: bool = False
    """Whether both sides may run code that lies in the folder (`trust_remote_code`)."""

    vllm: dict[str, Any] = field(default_factory=dict)
    """Further vLLM engine arguments."""

    must_refuse: bool = False
    """Whether the engine has to refuse the model, although sentence-transformers makes vectors with it."""

    classifies: bool = False
    """Whether it is a reranker or a classifier: then its logits are compared, as vectors of one number per label."""

    cosine: float = 0.9999
    """The least cosine that counts as right; lower for a case that can't be served in float32."""

    reference: Writer | None = None
    """If sentence-transformers can't load the folder: writes the same weights in a form that it can load."""

    reference_code: bool = False
    """Whether sentence-transformers runs code that lies in the folder of `reference`; the engine never sees it."""

    output: str = "dense"
    """What is compared: the model's `dense`, `sparse` or `multi_vector` output."""

    @property
    def engine_arguments(self) -> dict[str, Any]:
        """All vLLM engine arguments of the case."""
        return {**({"trust_remote_code": True} if self.trusted else {}), **self.vllm}


CASES: dict[str, FamilyCase] = {}


def case(family: str, **settings: Any) -> Callable[[Writer], Writer]:
    """Register the decorated function, which writes a model into an empty folder. settings: more fields of Case."""

    def register(write: Writer) -> Writer:
        name = write.__name__
        if name in CASES:
            raise ValueError(f"there are two cases {name}")
        CASES[name] = FamilyCase(name, family, write, **settings)
        return write

    return register


def load_cases() -> dict[str, FamilyCase]:
    """All cases by name, in the order of the table."""
    for file in FILES:
        import_module(f"{__package__}.{file}")
    return CASES


def select(cases: dict[str, FamilyCase], patterns: list[str]) -> Iterator[FamilyCase]:
    """The cases whose name or family matches one of the shell patterns; all if there is no pattern."""
    for found in cases.values():
        if not patterns or any(
            fnmatchcase(text, pattern) for text in (found.name, found.family) for pattern in patterns
        ):
            yield found
