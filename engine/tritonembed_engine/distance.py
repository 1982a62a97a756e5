"""The distance of answers from right answers: of vectors by their angle, of a classifier's logits by value."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Distances = npt.NDArray[np.float64]

NOT_FINITE = 2.0
"""The distance of an answer that is not finite, or of another shape."""


def of_vectors(answers: Vectors, expected: Vectors) -> Distances:
    """1 - cosine of each row: float64 [rows]. A row of zeros equals a row of zeros."""
    if answers.shape != expected.shape:
        return np.full(len(expected), NOT_FINITE)
    cosines = np.einsum("ij,ij->i", unit(answers), unit(expected))
    # In a random model the vector of the end token can be zeros.
    both_zero = ~(answers.any(1) | expected.any(1))
    return _finite(np.where(both_zero, 0.0, 1 - cosines), answers)


def of_scores(answers: Vectors, expected: Vectors, among: Vectors) -> Distances:
    """The largest difference of each row, in standard deviations of the logits in `among`: float64 [rows].

    answers, expected: [rows, labels]. A ranking depends on the differences between logits.
    """
    if answers.shape != expected.shape:
        return np.full(len(expected), NOT_FINITE)
    spread = max(float(among.astype(np.float64).std(axis=0).max()), 1e-6)
    return _finite(np.abs(answers.astype(np.float64) - expected).max(axis=1) / spread, answers)


def unit(vectors: Vectors) -> Distances:
    """The rows with length 1, as float64; zeros for a row of zeros or one that is not finite."""
    wide = vectors.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    usable = (norms > 0) & np.isfinite(norms)
    result: Distances = np.divide(wide, norms, out=np.zeros_like(wide), where=usable)
    return result


def _finite(distances: Distances, answers: Vectors) -> Distances:
    # A NaN must not pass, and no comparison with it is true.
    return np.where(np.isfinite(answers).all(1), distances, NOT_FINITE)


@dataclass(frozen=True)
class Measure:
    """A kind of distance, and its limits.

    float32: the largest distance in float32. sixteen: in 16-bit types, unless they round more in transformers, too.
    most: in any case.
    """

    float32: float
    sixteen: float
    most: float

    def distances(self, answers: Vectors, expected: Vectors, among: Vectors | None = None) -> Distances:
        """The distance of each row. among: all expected rows, if `expected` has only some of them."""
        if self is SCORES:
            return of_scores(answers, expected, expected if among is None else among)
        return of_vectors(answers, expected)

    def over(self, distance: float, allowed: float, other: str) -> str:
        """Words for messages: the distance to `other` is too large."""
        if self is SCORES:
            return f"{distance:.4f} standard deviations from {other}, over {allowed:.4f}"
        return f"cosine {1 - distance:.6f} to {other}, below {1 - allowed:.6f}"

    def summary(self, largest: float, other: str) -> str:
        """A summary for the log."""
        if self is SCORES:
            return f"largest difference {largest:.6f} standard deviations from {other}"
        return f"lowest cosine {1 - largest:.6f} to {other}"

    def change(self, distance: float) -> str:
        """Words for messages: how much something changes the answers."""
        if self is SCORES:
            return f"scores of this model by {distance:.4f} standard deviations"
        return f"vectors of this model to a cosine of {1 - distance:.4f}"


VECTORS = Measure(1e-4, 5e-4, 0.01)
"""1 - cosine. A larger distance could be a wrong vector."""

SCORES = Measure(2e-3, 0.05, 0.25)


def measure_of(is_classifier: bool) -> Measure:
    """The measure of a model's answers."""
    return SCORES if is_classifier else VECTORS
