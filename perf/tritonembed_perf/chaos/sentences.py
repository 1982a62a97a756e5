"""Sentences with known vectors: those that the service gave before it was attacked or harmed."""

import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
"""[sentence, dimension]"""

SAME = 0.9999
"""Least cosine of a vector to the known vector. Batches of other sizes round differently, in the sixth digit."""
APART = 0.999
"""Cosines between sentences of the pool are below this, so that a vector in another's place is found."""

_LIST = (
    "river stone winter lamp copper garden letter mountain bridge silver engine harbor violin morning castle orange "
    "planet window forest market doctor thunder paper kitchen ocean ladder horse village candle mirror train desert "
    "pencil island summer cotton dragon whistle carpet ticket tunnel farmer butter magnet rocket spider velvet wagon"
)
_WORDS = _LIST.split()


def make_sentences(count: int, rng: random.Random) -> list[str]:
    """Different sentences of 3 to 14 words."""
    made: dict[str, None] = {}
    while len(made) < count:
        made[" ".join(rng.sample(_WORDS, rng.randint(3, 14)))] = None
    return list(made)


class KnownVectors:
    """sentences: the pool. vectors: one per sentence, in the same order. Raises ValueError if two are too alike."""

    def __init__(self, sentences: Sequence[str], vectors: Vectors) -> None:
        self.sentences = list(sentences)
        self._unit = _unit(vectors)
        self._norms = np.linalg.norm(vectors, axis=1)
        alike = self._unit @ self._unit.T
        np.fill_diagonal(alike, -1.0)
        if not float(alike.max()) < APART:
            raise ValueError(f"two sentences have vectors with a cosine of {alike.max():.5f}: no check would be one")

    def pick(self, count: int, rng: random.Random) -> list[int]:
        """Indices of `count` different sentences."""
        return rng.sample(range(len(self.sentences)), count)

    def fault(self, picked: Sequence[int], vectors: Vectors) -> str | None:
        """What is wrong with the vectors of the picked sentences, in a few words; None if they are right."""
        expected = self._unit[list(picked)]
        if vectors.shape != expected.shape:
            return f"shape {list(vectors.shape)} instead of {list(expected.shape)}"
        if not np.isfinite(vectors).all():
            return "a value that is not finite"
        norms = np.linalg.norm(vectors, axis=1)
        if not np.allclose(norms, self._norms[list(picked)], rtol=1e-3):
            return "a vector of another length"
        cosines = np.einsum("ij,ij->i", _unit(vectors), expected)
        worst = int(np.argmin(cosines))
        if cosines[worst] >= SAME:
            return None
        # A high cosine to another sentence shows that answers were mixed up.
        nearest = float((self._unit @ _unit(vectors)[worst]).max())
        return f"cosine {cosines[worst]:.5f} in place {worst} (the nearest sentence of the pool: {nearest:.5f})"


def _unit(vectors: Vectors) -> Vectors:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
