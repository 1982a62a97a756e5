"""The loads for every peer, with their texts and right vectors made once."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from tritonembed_engine.model.files import ModelFiles
from tritonembed_manager.tune.loads import LoadShape, WordTexts
from tritonembed_perf.loadgen.answers import (
    AnswerCheck,
    Reference,
    embed_with_transformers,
    make_references,
    min_cosine,
)
from tritonembed_perf.loadgen.requests import PooledRequest, make_requests, requests_to_prepare


@dataclass(frozen=True)
class Trial:
    """Requests of one shape: `concurrency` at once, or `rate` per second at random moments."""

    tokens: int
    sentences: int
    concurrency: int | None = None
    rate: float | None = None

    @staticmethod
    def of(load: LoadShape) -> "Trial":
        """A closed loop."""
        return Trial(load.tokens, load.sentences, load.at_once)

    @staticmethod
    def parse(name: str) -> "Trial":
        """Of what `name` gives. Raises ValueError."""
        shape, _, rate = name.removesuffix("/s").partition(" at ")
        shape, _, concurrency = shape.partition("@")
        tokens, sentences = (int(part) for part in shape.split("x"))
        return Trial(tokens, sentences, int(concurrency) if concurrency else None, float(rate) if rate else None)

    @property
    def shape(self) -> tuple[int, int]:
        """What its texts depend on."""
        return self.tokens, self.sentences

    @property
    def name(self) -> str:
        """50x64@4, or 50x1 at 20/s."""
        shape = f"{self.tokens}x{self.sentences}"
        return f"{shape}@{self.concurrency}" if self.rate is None else f"{shape} at {self.rate:g}/s"


@dataclass(frozen=True)
class Material:
    """Requests of one shape and the right vectors of some of their sentences."""

    requests: Sequence[PooledRequest]
    references: Mapping[int, Reference]


class Materials:
    """Of every shape; references are transformers' in float32, the same for all peers."""

    def __init__(self, files: ModelFiles, tokenizer: Tokenizer, dtype: str) -> None:
        self._files = files
        self._words = WordTexts(tokenizer)
        self._min_cosine = min_cosine(dtype)
        self._made: dict[tuple[int, int], Material] = {}

    def of(self, trial: Trial) -> Material:
        """Made at the first use."""
        if trial.shape not in self._made:
            count = requests_to_prepare(trial.sentences, trial.tokens, None) * trial.sentences
            lengths = [trial.tokens] * count
            texts = self._words.of_lengths(lengths, random.Random(trial.tokens))
            requests = make_requests(texts, lengths, trial.sentences)
            self._made[trial.shape] = Material(requests, make_references(requests, self._right_vectors))
        return self._made[trial.shape]

    def check(self, trial: Trial) -> AnswerCheck:
        """Of the answers to the trial's requests."""
        material = self.of(trial)
        return AnswerCheck(self._files.dimensions, self._files.normalize, self._min_cosine, material.references)

    def _right_vectors(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return embed_with_transformers(self._files, texts)
