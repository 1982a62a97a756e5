"""Hold an executor against the reference: cosines, and the order of the nearest."""

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tritonembed_engine.executors.base import Executor
from tritonembed_engine.reference.cases import Reference, Vectors
from tritonembed_engine.token_ids import holds

logger = logging.getLogger(__name__)

LARGEST_DISTANCE = {"float32": 1e-4, "bfloat16": 5e-4, "float16": 5e-4}
"""1 - cosine, by the type that the model computes in."""

NOISE_MARGIN = 1.5
"""Our 16-bit rounding and transformers' are two draws of the same noise: the larger of one may pass the other's."""

LARGEST_ALLOWED = 0.01
"""However much transformers rounds: beyond it nothing could be told from a wrong vector."""

NEAREST = 10
SAME_SCORE = 0.002
"""Two scores that differ by no more may change places."""


class Wrong(Exception):
    """Vectors that are not the reference's; says which case differs, and by how much."""


@dataclass(frozen=True)
class Verdict:
    """distances: 1 - cosine of each case; 2 for one that is not finite. worst: the case with the largest.

    allowed: the distance that passes. swaps: pairs among the nearest of a case whose order changed though their scores
    differ.
    """

    distances: npt.NDArray[np.float64]
    worst: str
    allowed: float
    swaps: int

    @property
    def largest(self) -> float:
        """The largest distance."""
        return float(self.distances.max(initial=0.0))

    @property
    def is_right(self) -> bool:
        """Whether it passes."""
        return self.largest <= self.allowed and not self.swaps


def compare(executor: Executor, reference: Reference, dtype: str) -> Verdict:
    """Embed every case alone that the executor takes; raises Wrong where it takes none.

    dtype: the type that the model computes in, as torch names it.
    """
    reference = without_refused(reference, executor.refused_id)
    if not reference.cases:
        raise Wrong(f"the reference ({reference.source}) has no case that the executor takes")
    rows = [executor.launch([case.ids], [case.skip] if case.skip else None).result() for case in reference.cases]
    return judge(np.concatenate(rows), reference, dtype)


def without_refused(reference: Reference, refused: int | None) -> Reference:
    """The cases that hold no such id."""
    kept = [number for number, case in enumerate(reference.cases) if refused is None or not holds(case.ids, refused)]
    if len(kept) == len(reference.cases):
        return reference
    cases = [reference.cases[number] for number in kept]
    return Reference(cases, reference.vectors[kept], reference.source, reference.rounding)


def judge(answers: Vectors, reference: Reference, dtype: str) -> Verdict:
    """The verdict on vectors, float32 [cases, dimensions]."""
    rounding = NOISE_MARGIN * reference.rounding.get(dtype, 0.0)
    allowed = min(max(LARGEST_DISTANCE.get(dtype, LARGEST_DISTANCE["bfloat16"]), rounding), LARGEST_ALLOWED)
    # sentence-transformers' own may be cut to the model's truncate_dim.
    answers = answers[:, : reference.vectors.shape[1]]
    if answers.shape != reference.vectors.shape:
        return Verdict(np.full(len(reference.cases), 2.0), reference.cases[0].name, allowed, 0)
    ours, theirs = _unit(answers), _unit(reference.vectors)
    cosines = np.einsum("ij,ij->i", ours, theirs)
    # A random model's end token can be zeros.
    both_zero = ~(answers.any(1) | reference.vectors.any(1))
    distances = np.where(both_zero, 0.0, 1 - cosines)
    distances[~np.isfinite(answers).all(1)] = 2.0
    # A vector that may turn by so much moves a score by up to the sine of that angle.
    same = SAME_SCORE if dtype == "float32" else max(SAME_SCORE, float(np.sqrt(2 * min(rounding, LARGEST_ALLOWED))))
    swaps = _swaps(ours @ ours.T, theirs @ theirs.T, same)
    return Verdict(distances, reference.cases[int(distances.argmax())].name, allowed, swaps)


def refuse_wrong(executor: Executor, reference: Reference, dtype: str) -> Verdict:
    """Raise Wrong where the executor's vectors do not pass."""
    verdict = compare(executor, reference, dtype)
    if verdict.largest > verdict.allowed:
        raise Wrong(
            f"{verdict.worst}: cosine {1 - verdict.largest:.6f} to the reference ({reference.source}), below"
            f" {1 - verdict.allowed:.6f}{_of_rounding(reference, dtype)}"
        )
    if verdict.swaps:
        raise Wrong(f"{verdict.swaps} of the nearest change places against the reference ({reference.source})")
    return verdict


class Gate:
    """What an executor has to pass before it serves. reference: None lets everything through."""

    def __init__(self, reference: Reference | None, dtype: str, quantized: bool) -> None:
        """dtype: the type that the model computes in. quantized: its weights are of fewer bits, so that it is told how
        near it comes and not refused."""
        self._reference = reference
        self._dtype = dtype
        self._quantized = quantized

    def check(self, executor: Executor) -> None:
        """Raise Wrong, or log how near the vectors are."""
        if self._reference is None:
            return
        check = compare if self._quantized else refuse_wrong
        verdict = check(executor, self._reference, self._dtype)
        logger.warning(
            "%s executor: cosine %.6f and more to the reference (%s), %d cases%s",
            executor.name,
            1 - verdict.largest,
            self._reference.source,
            len(verdict.distances),
            ", quantized" if self._quantized else "",
        )


def _of_rounding(reference: Reference, dtype: str) -> str:
    """What helps where the type alone turns the vectors too far, to be put behind a message."""
    rounding = reference.rounding.get(dtype, 0.0)
    if NOISE_MARGIN * rounding <= LARGEST_ALLOWED:
        return ""
    return f" ({dtype} alone turns vectors of this model to {1 - rounding:.4f}: --dtype float32)"


def _swaps(ours: Vectors, theirs: Vectors, same: float) -> int:
    """Pairs among the NEAREST of each case whose order changed. ours, theirs: scores [cases, cases]."""
    count = 0
    for case in range(len(theirs)):
        others = np.delete(np.arange(len(theirs)), case)
        nearest = others[np.argsort(-theirs[case, others])[:NEAREST]]
        expected, found = theirs[case, nearest], ours[case, nearest]
        differ = expected[:, None] - expected[None, :] > same
        count += int((differ & (found[:, None] <= found[None, :])).sum())
    return count


def _unit(vectors: Vectors) -> npt.NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    usable = (norms > 0) & np.isfinite(norms)
    unit: npt.NDArray[np.float64] = np.divide(wide, norms, out=np.zeros_like(wide), where=usable)
    return unit
