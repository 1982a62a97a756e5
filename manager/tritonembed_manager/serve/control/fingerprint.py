"""Do servers give the same vectors? Those of fixed sentences tell a server's model, pooling and precision."""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

SENTENCES = (
    "ready?",
    "The vectors of this sentence tell one model from another.",
    "A longer one shows how its tokens are pooled: the first, the last, or the mean of all of them, in any language.",
)
"""What every server is asked; short, since it is asked often."""

SAME = 0.999
"""Least cosine of two vectors of one sentence that count as the same."""

Vectors = NDArray[np.float32]
"""[sentence, dimension]"""


def difference(ours: Vectors, theirs: Vectors) -> str | None:
    """What tells the second from the first, in a few words; None when they are the same."""
    if ours.shape != theirs.shape:
        return f"its vectors have {theirs.shape[1]} dimensions instead of {ours.shape[1]}"
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    dots = np.einsum("ij,ij->i", ours.astype(np.float64), theirs)
    cosine = float(np.min(np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)))
    # Written so that NaN, which compares as false, is a difference.
    return None if cosine >= SAME else f"its vectors differ (cosine {cosine:.4f}, at least {SAME} wanted)"


class Agreement:
    """The servers whose vectors agree.

    Until `settle` the first answers are collected; then the largest group of equals is accepted (of two as large the
    one that was named first). Later ones join if they agree. A server that has joined is held to its own first
    answer; all of this lasts as long as one of them is still listed.
    """

    def __init__(self) -> None:
        self._accepted: dict[str, Vectors] = {}
        self._settled = False

    @property
    def settled(self) -> bool:
        """Whether there is a group to agree with."""
        return self._settled and bool(self._accepted)

    def settle(self, answers: Mapping[str, Vectors]) -> None:
        """Choose among the first answers, in the order of the servers."""
        if not answers or self.settled:
            return
        groups = [
            [key for key, theirs in answers.items() if difference(ours, theirs) is None] for ours in answers.values()
        ]
        chosen = max(groups, key=len)
        self._accepted = {key: answers[key] for key in chosen}
        self._settled = True

    def judge(self, key: str, vectors: Vectors) -> str | None:
        """Why this server's answer is not to be mixed with the others'; None when it is one of them (it joins)."""
        if key in self._accepted:
            found = difference(self._accepted[key], vectors)
            return found and f"{found} from those it gave when it joined"
        for other, expected in self._accepted.items():
            found = difference(expected, vectors)
            if found is not None:
                return f"{found} from those of {other}: another model, pooling or precision"
            break
        self._accepted[key] = vectors
        self._settled = True
        return None

    def leave(self, keys: Iterable[str]) -> None:
        """These are no longer listed."""
        for key in keys:
            self._accepted.pop(key, None)
