"""Compare an executor with the reference: the distances and, for vectors, the order of the nearest."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tritonembed_engine.distance import measure_of, unit
from tritonembed_engine.errors import ModelError
from tritonembed_engine.executors.base import Executor
from tritonembed_engine.reference.cases import Case, Reference, Vectors
from tritonembed_engine.token_ids import TokenIds, holds

logger = logging.getLogger(__name__)

NOISE_MARGIN = 1.5
"""Our 16-bit rounding and transformers' are two samples of the same noise, so ours may be somewhat larger."""

NEAREST = 10
SAME_SCORE = 0.002
"""Two scores that differ by at most this may change places."""


class Wrong(Exception):
    """The executor's vectors differ from the reference's; the message has the case and the distance."""


@dataclass(frozen=True)
class Verdict:
    """The result of a comparison.

    distances: one per case. worst: the case with the largest distance. allowed: the largest distance that passes.
    swaps: pairs among the nearest of a case whose order changed although their scores differ.
    """

    distances: npt.NDArray[np.float64]
    worst: str
    allowed: float
    swaps: int

    @property
    def largest(self) -> float:
        return float(self.distances.max(initial=0.0))

    @property
    def is_right(self) -> bool:
        """Whether it passes."""
        return self.largest <= self.allowed and not self.swaps


def compare(executor: Executor, reference: Reference, dtype: str, padded: bool = False) -> Verdict:
    """Embed, one by one, every case that the executor accepts. Raises Wrong if it accepts none.

    dtype: the type that the model computes in, by torch's name. padded: whether the executor pads a batch; then every
    case is also embedded in batches of mixed lengths, and the worse result counts.
    """
    reference = without_refused(reference, executor.refused_id)
    if not reference.cases:
        raise Wrong(f"the reference ({reference.source}) has no case that the executor accepts")
    verdict = judge(vectors_of(executor, [[case] for case in reference.cases]), reference, dtype)
    if not padded:
        return verdict
    return _worse(verdict, judge(vectors_of(executor, _batches(reference.cases, executor)), reference, dtype))


def vectors_of(executor: Executor, batches: Iterable[Sequence[Case]]) -> Vectors:
    """An executor's vectors, float32 [cases, dimensions], computed batch by batch."""
    rows = []
    for cases in batches:
        skips = [case.skip for case in cases]
        sentences = TokenIds.join([case.ids for case in cases])
        rows.append(executor.launch(sentences, skips if any(skips) else None).result())
    return np.concatenate(rows)


def _batches(cases: Sequence[Case], executor: Executor) -> list[list[Case]]:
    """The cases in their order, in batches as the engine makes them."""
    batches: list[list[Case]] = [[]]
    room = executor.max_batch_tokens
    for case in cases:
        if batches[-1] and (case.tokens > room or len(batches[-1]) == executor.max_batch_sentences):
            batches.append([])
            room = executor.max_batch_tokens
        batches[-1].append(case)
        room -= case.tokens
    return batches


def _worse(one: Verdict, other: Verdict) -> Verdict:
    worst = one.worst if one.largest >= other.largest else other.worst
    return Verdict(np.maximum(one.distances, other.distances), worst, one.allowed, max(one.swaps, other.swaps))


def without_refused(reference: Reference, refused: int | None) -> Reference:
    """The cases without this id."""
    kept = [number for number, case in enumerate(reference.cases) if refused is None or not holds(case.ids, refused)]
    if len(kept) == len(reference.cases):
        return reference
    cases = [reference.cases[number] for number in kept]
    return replace(reference, cases=cases, vectors=reference.vectors[kept])


def judge(answers: Vectors, reference: Reference, dtype: str) -> Verdict:
    """The verdict on vectors, float32 [cases, dimensions]."""
    measure = measure_of(reference.of_scores)
    rounding = NOISE_MARGIN * reference.rounding.get(dtype, 0.0)
    allowed = min(max(measure.float32 if dtype == "float32" else measure.sixteen, rounding), measure.most)
    # sentence-transformers' vectors may be cut to the model's truncate_dim.
    answers = answers[:, : reference.vectors.shape[1]]
    distances = measure.distances(answers, reference.vectors)
    worst = reference.cases[int(distances.argmax())].name
    if reference.of_scores or answers.shape != reference.vectors.shape:
        return Verdict(distances, worst, allowed, 0)
    # A vector that may turn by this angle moves a score by up to its sine.
    same = SAME_SCORE if dtype == "float32" else max(SAME_SCORE, float(np.sqrt(2 * min(rounding, measure.most))))
    ours, theirs = unit(answers), unit(reference.vectors)
    return Verdict(distances, worst, allowed, _swaps(ours @ ours.T, theirs @ theirs.T, same))


def refuse_wrong(executor: Executor, reference: Reference, dtype: str, padded: bool = False) -> Verdict:
    """Raise Wrong if the executor's vectors do not pass. padded: see `compare`."""
    verdict = compare(executor, reference, dtype, padded)
    if verdict.largest > verdict.allowed:
        measure = measure_of(reference.of_scores)
        distance = measure.over(verdict.largest, verdict.allowed, f"the reference ({reference.source})")
        raise Wrong(f"{verdict.worst}: {distance}{_of_rounding(reference, dtype)}")
    if verdict.swaps:
        raise Wrong(f"{verdict.swaps} neighbours are in another order than in the reference ({reference.source})")
    return verdict


class Gate:
    """The check before an executor serves. reference: None lets everything pass."""

    def __init__(self, reference: Reference | None, dtype: str, quantized: bool, padded: bool = False) -> None:
        """dtype: the type that the model computes in. quantized: its weights have fewer bits; then a distance is only
        logged, and not a reason to refuse. padded: see `compare`."""
        self._reference = reference
        self._dtype = dtype
        self._quantized = quantized
        self._padded = padded

    def check(self, executor: Executor) -> None:
        """Raise Wrong, or log the largest distance."""
        if self._reference is None:
            return
        check = compare if self._quantized else refuse_wrong
        verdict = check(executor, self._reference, self._dtype, self._padded)
        logger.warning(
            "%s executor: %s, %d cases%s",
            executor.name,
            measure_of(self._reference.of_scores).summary(verdict.largest, f"the reference ({self._reference.source})"),
            len(verdict.distances),
            ", quantized" if self._quantized else "",
        )
        if self._reference.token_outputs:
            self._check_tokens(executor, self._reference)

    def _check_tokens(self, executor: Executor, reference: Reference) -> None:
        """Raise Wrong if weights of a text or vectors of tokens differ; else log the largest distance.

        If the type has fewer bits than float32, the mean distance counts, not the largest.
        """
        # Imported here, because it needs torch, and the openvino executor does not.
        from tritonembed_engine.reference.token_check import MOST_IN_FLOAT32, MOST_ON_AVERAGE, distances_of

        exact = self._dtype == "float32" and not self._quantized
        found = distances_of(executor, reference.cases, reference.token_outputs)
        for name, distances in found.items():
            distance = float(distances.max(initial=0.0) if exact else distances.mean())
            allowed = MOST_IN_FLOAT32 if exact else MOST_ON_AVERAGE
            if distance > allowed:
                which = "cosine" if exact else "on average, cosine"
                raise Wrong(
                    f"the output {name}: {which} {1 - distance:.6f} to the reference ({reference.source}), below"
                    f" {1 - allowed:.6f}"
                )
        lowest = 1 - max(float(distances.max(initial=0.0)) for distances in found.values())
        logger.warning("outputs per token: lowest cosine %.6f to the reference", lowest)


def let_through(executor: Executor, gate: Gate, name: str, tried: Sequence[str]) -> Executor:
    """The executor, if its vectors are right. Else raises ModelError, which names everything that was tried.

    name: the model's. tried: executors before this one, and why they do not serve.
    """
    try:
        gate.check(executor)
    except Wrong as problem:
        ways = "; ".join([*tried, f"{executor.name} executor: {problem}"])
        raise ModelError(f"{name} is not served, because its vectors would be wrong: {ways}") from None
    return executor


def _of_rounding(reference: Reference, dtype: str) -> str:
    """Advice to append to a message, if the type alone turns the vectors too far."""
    rounding, measure = reference.rounding.get(dtype, 0.0), measure_of(reference.of_scores)
    if NOISE_MARGIN * rounding <= measure.most:
        return ""
    return f" ({dtype} alone changes {measure.change(rounding)}: use --dtype float32)"


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
