"""The loads that every peer is put under, with their texts and right vectors made once."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from tritonembed_engine.model.files import ModelFiles
from tritonembed_perf.run.checks import AnswerCheck, Reference
from tritonembed_perf.run.corpus import PooledRequest, WordTexts, make_requests, requests_to_prepare
from tritonembed_perf.run.reference import embed_with_transformers, make_references
from tritonembed_perf.shape_load import ShapeLoad

MIN_COSINE = {"float32": 0.999}
MIN_COSINE_16_BITS = 0.99


@dataclass(frozen=True)
class Trial:
    """Requests of one shape: `concurrency` at once, or `rate` a second at random moments."""

    tokens: int
    sentences: int
    concurrency: int | None = None
    rate: float | None = None

    @staticmethod
    def of(load: ShapeLoad) -> "Trial":
        """A closed loop."""
        return Trial(load.tokens, load.sentences, load.concurrency)

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
        self._min_cosine = MIN_COSINE.get(dtype, MIN_COSINE_16_BITS)
        self._made: dict[tuple[int, int], Material] = {}

    def of(self, trial: Trial) -> Material:
        """Made when first asked for."""
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
