"""A closed loop in a few letters: TOKENSxSENTENCES@CONCURRENCY."""

import argparse
from dataclasses import dataclass

from tritonembed_perf.failures import UsageError


@dataclass(frozen=True)
class ShapeLoad:
    """Requests of `sentences` sentences of exactly `tokens` tokens, `concurrency` of them at once."""

    tokens: int
    sentences: int
    concurrency: int

    @property
    def name(self) -> str:
        """As it is typed."""
        return f"{self.tokens}x{self.sentences}@{self.concurrency}"


def parse_loads(text: str) -> list[ShapeLoad]:
    """Of `50x64@4,50x1@16`. Raises UsageError."""
    return [_parse(part) for part in text.split(",")]


def loads_option(text: str) -> list[ShapeLoad]:
    """The type of an option of a script (argparse): what `parse_loads` accepts."""
    try:
        return parse_loads(text)
    except UsageError as error:
        # argparse names the option itself.
        raise argparse.ArgumentTypeError(str(error).removeprefix("--loads: ")) from None


def _parse(text: str) -> ShapeLoad:
    try:
        shape, concurrency = text.strip().split("@")
        tokens, sentences = shape.split("x")
        load = ShapeLoad(int(tokens), int(sentences), int(concurrency))
    except ValueError:
        raise UsageError(f"--loads: {text!r} is not TOKENSxSENTENCES@CONCURRENCY") from None
    if min(load.tokens, load.sentences, load.concurrency) < 1:
        raise UsageError(f"--loads: {text!r} has a number below 1")
    return load
