"""What `tune` chooses: one candidate, and the values each of its settings may take."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace


@dataclass(frozen=True)
class Candidate:
    """Settings that one server is started with."""

    tokenizer_instances: int
    replicas: int
    """Embedder instances a GPU (or a group of GPUs)."""
    max_batch_tokens: int
    """Tokens in one forward pass."""

    def __str__(self) -> str:
        tokenizers = _counted(self.tokenizer_instances, "tokenizer")
        return f"{tokenizers}, {_counted(self.replicas, 'replica')}, {self.max_batch_tokens} tokens a batch"

    def with_value(self, setting: str, value: int) -> "Candidate":
        """The same but for one setting."""
        return replace(self, **{setting: value})


SETTINGS = tuple(field.name for field in fields(Candidate))
"""The settings, in the order in which the search tries them."""


@dataclass(frozen=True)
class Space:
    """The values to choose from, ascending and without repetition."""

    tokenizer_instances: Sequence[int]
    replicas: Sequence[int]
    max_batch_tokens: Sequence[int]

    def values(self, setting: str) -> Sequence[int]:
        """Of one of SETTINGS."""
        found: Sequence[int] = getattr(self, setting)
        return found

    def nearest(self, wanted: Candidate) -> Candidate:
        """The candidate of this space that is closest to `wanted`, which may lie outside."""
        return Candidate(**{name: _closest(self.values(name), getattr(wanted, name)) for name in SETTINGS})

    @property
    def has_choice(self) -> bool:
        """False where every setting has one value."""
        return any(len(self.values(name)) > 1 for name in SETTINGS)


def _closest(values: Sequence[int], wanted: int) -> int:
    return min(values, key=lambda value: (abs(value - wanted), value))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
