"""From a classifier's logits to scores."""

import numpy as np
import numpy.typing as npt

from tritonembed_protocol.types import Activation

Scores = npt.NDArray[np.float32]


def activate(logits: Scores, activation: Activation) -> Scores:
    """Scores of logits, float32 [pairs or texts, labels]. softmax is over the labels."""
    if activation == "none":
        return logits
    wide = logits.astype(np.float64)
    if activation == "sigmoid":
        # Without overflow for large negative logits.
        small = np.exp(-np.abs(wide))
        return np.where(wide >= 0, 1 / (1 + small), small / (1 + small)).astype(np.float32)
    exponents = np.exp(wide - wide.max(axis=1, keepdims=True))
    scores: Scores = (exponents / exponents.sum(axis=1, keepdims=True)).astype(np.float32)
    return scores
