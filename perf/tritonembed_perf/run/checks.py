"""Is an answer right? Shape and norm of every one, a sample of them against vectors known beforehand."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tritonembed_perf.run.wire import Answer

NORM_TOLERANCE = 5e-3
"""How far a normalised vector's norm may be from 1; 16-bit vectors have about 1e-3."""


@dataclass(frozen=True)
class Reference:
    """The right vectors of some sentences of a request. rows: which sentences; vectors: theirs, norm 1."""

    rows: npt.NDArray[np.int64]
    vectors: npt.NDArray[np.float32]


@dataclass(frozen=True)
class AnswerCheck:
    """dimensions: of every vector. references: by the number of the pooled request. tokens: of each, to be compared."""

    dimensions: int
    normalized: bool
    min_cosine: float
    references: Mapping[int, Reference]
    tokens: tuple[int, ...] | None = None

    def find_fault(self, number: int, answer: Answer) -> str:
        """What is wrong with the answer to pooled request `number`; empty where nothing is."""
        vectors = answer.vectors
        if vectors.shape[1] != self.dimensions:
            return f"vectors of {vectors.shape[1]} dimensions instead of {self.dimensions}"
        norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        # Not finite numbers fail both comparisons.
        if self.normalized and not (np.abs(norms - 1) <= NORM_TOLERANCE).all():
            return f"a vector of norm {norms[np.argmax(np.abs(norms - 1))]:.4f} from a model that normalises"
        if not (np.isfinite(norms) & (norms > 0)).all():
            return "a vector that is zero or not finite"
        if self.tokens is not None and answer.tokens is not None and answer.tokens != self.tokens[number]:
            return f"the server saw {answer.tokens} tokens in a request of {self.tokens[number]}"
        reference = self.references.get(number)
        if reference is not None:
            rows = reference.rows
            cosines = np.einsum("ij,ij->i", vectors[rows], reference.vectors) / norms[rows]
            if not (cosines >= self.min_cosine).all():
                return f"a vector with cosine {np.min(cosines):.4f} to its reference, less than {self.min_cosine}"
        return ""


def unit_rows(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Each row scaled to norm 1."""
    scaled: npt.NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled
