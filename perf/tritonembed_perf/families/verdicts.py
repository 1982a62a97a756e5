"""Verdicts: the result of a case, from the comparison of two sets of vectors; all results as Markdown and as JSON."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

LARGEST_RATIO = 1e-3
"""Allowed difference of two vectors' norms, relative to the reference's norm."""

_PATH = re.compile(r"(?:(?<=\s)|(?<=['\"(])|^)(?:/[\w.+-]+)+/")
_LONGEST = 200
_LISTED = 4

Vectors = dict[str, npt.NDArray[np.float32]]


class CaseResult(str, Enum):
    RIGHT = "right"
    REFUSED = "refused"
    NO_REFERENCE = "no reference"
    WRONG = "WRONG"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    family: str
    verdict: CaseResult
    detail: str = ""
    """The engine's message, or what is wrong."""

    cosine: float | None = None
    """The least cosine over all texts."""

    executor: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    """vLLM engine arguments that the case needs."""

    seconds: float = 0.0


def judge(reference: dict[str, Any], served: dict[str, Any], must_refuse: bool) -> tuple[CaseResult, str] | None:
    """The verdict if a side refused or crashed; None if the vectors have to be compared.

    reference, served: the answers of `reference.run` and `serving.run`, or {"crashed": why}.
    """
    if why := reference.get("crashed"):
        return CaseResult.WRONG, f"the folder could not be written or embedded: {clean(why)}"
    if why := served.get("crashed"):
        return CaseResult.WRONG, f"the engine crashed: {clean(why)}"
    if why := served.get("refused"):
        return CaseResult.NO_REFERENCE if "refused" in reference else CaseResult.REFUSED, clean(why)
    if why := reference.get("refused"):
        return CaseResult.WRONG, f"served, but sentence-transformers refuses: {clean(why)}"
    if must_refuse:
        return CaseResult.WRONG, "served, but its vectors would mean nothing"
    return None


def compare(reference: Vectors, served: Vectors, least: float) -> tuple[CaseResult, str, float]:
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
            return CaseResult.WRONG, f"{found.shape[1]} dimensions instead of {expected.shape[1]}", float("nan")
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
    return (CaseResult.WRONG, "; ".join(problems), worst) if problems else (CaseResult.RIGHT, "", worst)


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
    # A reranker's one number may be close to 0: then rounding is no small part of it.
    least = np.median(theirs) if expected.shape[1] == 1 else 1e-6
    return float((np.abs(ours - theirs) / np.maximum(theirs, max(least, 1e-6))).max())


COMMAND = "python -m tritonembed_perf.families --out docs"

_HEAD = f"""\
# Models

This page shows which model folders the engine serves, and whether their vectors are right. `{COMMAND}` makes
this page on any CPU: no model hub, no GPU. Every case is a folder in the layout of the hub's
models, with small random weights.

* **Result.** `right`: each vector has a cosine of at least 0.9999 to sentence-transformers' own float32 vector, and the
  same norm. `refused`: the engine does not load the model, and the message says why. `no reference`:
  sentence-transformers does not load it either. `WRONG`: a vector differs, or the engine serves what
  sentence-transformers refuses. SPLADE's weights and the vectors of a ColBERT model's tokens are compared as one
  vector per text. A reranker's logits are compared, as a vector with one number per label, with those of its
  `CrossEncoder`, or for Qwen3-Reranker of the code on its card.
* **Cosine.** The least cosine of about 40 texts, from empty to far over the maximum, as queries and as passages.
* **Executor.** The executor that served: `direct` runs a whole batch in one forward pass, `scheduler` is vLLM's own,
  `transformers` is Hugging Face's model for families that vLLM lacks.
* **Arguments.** vLLM engine arguments that the case needs.

"""


def summary(rows: Sequence[Row]) -> str:
    """The number of cases per result, in one line."""
    counts = Counter(row.verdict for row in rows)
    return ", ".join(f"{counts[verdict]} {verdict.value}" for verdict in CaseResult if counts[verdict]) or "no cases"


def markdown(rows: Sequence[Row]) -> str:
    """The page: a head that explains the columns, and one table per family."""
    parts = [_HEAD, f"{len(rows)} cases: {summary(rows)}.\n"]
    for family in dict.fromkeys(row.family for row in rows):
        parts.append(
            f"\n## {family}\n\n| case | result | cosine | executor | message | arguments |\n|---|---|---|---|---|---|\n"
        )
        parts += [_line(row) for row in rows if row.family == family]
    return "".join(parts)


def write_results(rows: Sequence[Row], folder: Path) -> None:
    """Write models.md and models.json into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "models.md").write_text(markdown(rows), encoding="utf-8")
    (folder / "models.json").write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")


def cosine_text(row: Row) -> str:
    """The least cosine, cut instead of rounded: 0.99996 must not become 1."""
    return "" if row.cosine is None or row.cosine != row.cosine else f"{int(row.cosine * 1e5) / 1e5:.5f}"


def _line(row: Row) -> str:
    result = f"**{row.verdict.value}**" if row.verdict is CaseResult.WRONG else row.verdict.value
    arguments = f"`{json.dumps(row.arguments)}`" if row.arguments else ""
    cells = [f"`{row.name}`", result, cosine_text(row), row.executor, row.detail.replace("|", "\\|"), arguments]
    return f"| {' | '.join(cells)} |\n"
