"""Prometheus' text format of many servers as one: each metric once, with all its samples behind it."""

import re
from dataclasses import dataclass, field

_SAMPLE = re.compile(r"([A-Za-z_:][A-Za-z0-9_:]*)(?:\{(.*)\})?( [^{}]+)")
_SUFFIXES = re.compile(r"_(?:bucket|sum|count|total|created)$")


@dataclass
class _Family:
    comments: list[str] = field(default_factory=list)
    """HELP and TYPE, as the first one to have them said."""
    samples: list[str] = field(default_factory=list)


class Merged:
    """Texts are added one by one; what is no sample is left out."""

    def __init__(self) -> None:
        self._families: dict[str, _Family] = {}

    def add(self, text: str, server: str | None = None) -> None:
        """server: the value of a label `server` that every sample gets."""
        label = None if server is None else f'server="{_escaped(server)}"'
        for line in text.splitlines():
            if line.startswith(("# HELP ", "# TYPE ")):
                self._comment(line)
            elif found := _SAMPLE.fullmatch(line):
                name, labels, value = found.groups()
                known = ",".join(part for part in (label, (labels or "").rstrip(",")) if part)
                self._of(name).samples.append(f"{name}{{{known}}}{value}" if known else f"{name}{value}")

    def text(self) -> str:
        """All of it."""
        lines = [line for family in self._families.values() for line in (*family.comments, *family.samples)]
        return "".join(f"{line}\n" for line in lines)

    def _comment(self, line: str) -> None:
        _, kind, name, *_ = line.split(" ", 3)
        family = self._families.setdefault(name, _Family())
        if not any(comment.startswith(f"# {kind} ") for comment in family.comments):
            family.comments.append(line)

    def _of(self, sample: str) -> _Family:
        """The metric a sample belongs to: its own, or that of a histogram or summary."""
        if sample not in self._families:
            whole = _SUFFIXES.sub("", sample)
            if whole in self._families:
                return self._families[whole]
        return self._families.setdefault(sample, _Family())


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
