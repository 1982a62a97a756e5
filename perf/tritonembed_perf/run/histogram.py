"""Latencies as a histogram: small enough to keep, fine enough for every percentile."""

from typing import Any

import numpy as np
import numpy.typing as npt

STEPS_PER_DOUBLING = 8
"""Neighbouring bounds are 9 % apart, and so is the error of a percentile read from the histogram."""


def latency_histogram(seconds: npt.NDArray[np.float64]) -> dict[str, Any]:
    """How many latencies fell below each bound and above the one before it; bounds in milliseconds, empty ends cut.

    Bounds are powers of 2 ** (1 / STEPS_PER_DOUBLING), so histograms of different runs can be added.
    """
    if not len(seconds):
        return {"upper_bounds_ms": [], "counts": []}
    milliseconds = np.maximum(np.asarray(seconds) * 1e3, 1e-6)
    steps = np.ceil(np.log2(milliseconds) * STEPS_PER_DOUBLING).astype(int)
    first = steps.min()
    counts = np.bincount(steps - first)
    bounds = 2.0 ** ((first + np.arange(len(counts))) / STEPS_PER_DOUBLING)
    return {"upper_bounds_ms": [float(f"{bound:.6g}") for bound in bounds], "counts": counts.tolist()}
