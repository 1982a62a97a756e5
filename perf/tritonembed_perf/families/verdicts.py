"""Verdicts: the result of a case, from the comparison of two sets of vectors."""

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

LARGEST_RATIO = 1e-3
"""Allowed difference of two vectors' norms, relative to the reference's norm."""

_PATH = re.compile(r"(?:(?<=\s)|(?<=['\"(])|^)(?:/[\w.+-]+)+/")
_LONGEST = 200
_LISTED = 4

Vectors = dict[str, npt.NDArray[np.float32]]


class Verdict(str, Enum):
    RIGHT = "right"
    REFUSED = "refused"
    NO_REFERENCE = "no reference"
    WRONG = "WRONG"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    family: str
    verdict: Verdict
    detail: str = ""
    """The engine's message, or what is wrong."""

    cosine: float | None = None
    """The least cosine over all texts."""

    executor: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    """vLLM engine arguments that the case needs."""

    seconds: float = 0.0


def judge(reference: dict[str, Any], served: dict[str, Any], must_refuse: bool) -> tuple[Verdict, str] | None:
    """The verdict if a side refused or crashed; None if the vectors have to be compared.

    reference, served: the answers of `reference.run` and `serving.run`, or {"crashed": why}.
    """
    if why := reference.get("crashed"):
        return Verdict.WRONG, f"the folder could not be written or embedded: {clean(why)}"
    if why := served.get("crashed"):
        return Verdict.WRONG, f"the engine crashed: {clean(why)}"
    if why := served.get("refused"):
        return Verdict.NO_REFERENCE if "refused" in reference else Verdict.REFUSED, clean(why)
    if why := reference.get("refused"):
        return Verdict.WRONG, f"served, but sentence-transformers refuses: {clean(why)}"
    if must_refuse:
        return Verdict.WRONG, "served, but its vectors would mean nothing"
    return None


def compare(reference: Vectors, served: Vectors, least: float) -> tuple[Verdict, str, float]:
    """Compare the engine's vectors with the reference's. Returns verdict, faults and least cosine.

    reference, served: by input type, float32 [texts, dimensions], NaN for a text without a vector. Texts that
    the reference can't embed are left out. least: the cosine that counts as right.
    """
    worst, problems = 1.0, []
    for kind, expected in reference.items():
        found = served[kind]
        if not expected.size:
            continue
        if expected.shape[1] != found.shape[1]:
            return Verdict.WRONG, f"{found.shape[1]} dimensions instead of {expected.shape[1]}", float("nan")
        known = np.isfinite(expected).all(axis=1)
        cosines = _cosines(expected[known], found[known])
        if not len(cosines):
            continue
        worst = min(worst, float(cosines.min()))
        bad = np.flatnonzero(known)[cosines < least]
        if len(bad):
            problems.append(f"{kind}: {_which(bad)} of {len(cosines)} texts, least cosine {cosines.min():.3f}")
        elif (ratio := _norm_ratio(expected[known], found[known])) > LARGEST_RATIO + (1 - least):
            problems.append(f"{kind}: norms differ by up to {ratio:.1%}")
    return (Verdict.WRONG, "; ".join(problems), worst) if problems else (Verdict.RIGHT, "", worst)


def clean(message: str) -> str:
    """One short line without paths."""
    line = _PATH.sub("", " ".join(message.split()))
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"


def _which(texts: npt.NDArray[np.intp]) -> str:
    """The number of texts. If they are few, also their places in `texts.KINDS`."""
    return f"{len(texts)} ({', '.join(f'#{place}' for place in texts)})" if len(texts) <= _LISTED else f"{len(texts)}"


def _cosines(expected: npt.NDArray[np.float32], found: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Cosines [texts], with two conventions: 1 for two vectors of zeros, -1 for a vector with NaN."""
    a, b = expected.astype(np.float64), found.astype(np.float64)
    norms = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    both_zero = (norms[0] < 1e-6) & (norms[1] < 1e-6)
    products = np.einsum("ij,ij->i", a, b) / np.maximum(norms[0] * norms[1], 1e-12)
    cosines: npt.NDArray[np.float64] = np.where(both_zero, 1.0, np.nan_to_num(products, nan=-1.0))
    return cosines


def _norm_ratio(expected: npt.NDArray[np.float32], found: npt.NDArray[np.float32]) -> float:
    ours, theirs = np.linalg.norm(found, axis=1), np.linalg.norm(expected, axis=1)
    return float((np.abs(ours - theirs) / np.maximum(theirs, 1e-6)).max())
