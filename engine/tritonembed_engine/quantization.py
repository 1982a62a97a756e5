"""8-bit products of a model, and the gate that they have to pass: what executors share, in numpy.

Weights get a scale per output channel and group of input channels. SmoothQuant (Xiao et al. 2023, arXiv:2211.10438)
divides the activations' large channels and multiplies the weights by the same factors, so that neither side has
outliers. The gate compares the ten nearest of each calibration text with those of the unquantized vectors. If they
differ too much, the products that cost most stay unquantized.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tritonembed_engine.distance import unit
from tritonembed_engine.errors import ModelError
from tritonembed_engine.model.files import ModelFiles
from tritonembed_engine.model.folder import read_object
from tritonembed_engine.settings import ModelSettings

Floats = npt.NDArray[np.float32]

NEAREST = 10
FEWEST_TEXTS = 100
SMOOTHING = 0.5
LARGEST = 127
"""Symmetric: -128 is not used."""

_SMALLEST = 1e-5
"""The least of a channel's largest value: a channel that is always zero would have no scale."""


def calibration_texts(file: str | None) -> list[str]:
    """The texts of a file, one per line, or of the project's own. Raises ModelError if there are too few."""
    try:
        where = resources.files("tritonembed_engine") / "calibration.txt" if file is None else Path(file)
        texts = list(dict.fromkeys(line for line in where.read_text("utf-8").splitlines() if line.strip()))
    except (OSError, UnicodeDecodeError):
        raise ModelError("the calibration texts can't be read: a file of UTF-8 with one text per line") from None
    if len(texts) < FEWEST_TEXTS:
        raise ModelError(f"{len(texts)} calibration texts, at least {FEWEST_TEXTS} are needed (one per line)")
    return texts


def is_quantized(settings: ModelSettings, files: ModelFiles) -> bool:
    """Whether a model is served or stored with weights of fewer than 16 bits."""
    config = read_object(files.transformer / "config.json")
    return bool(settings.vllm.get("quantization") or config.get("quantization_config"))


def smoothing_factors(activations: Floats, weights: Sequence[Floats]) -> Floats:
    """What activations are divided by and weights multiplied by, float32 [inputs], with a geometric mean of 1.

    activations: the largest absolute value of each channel, [inputs]. weights: of all products with this input, each
    [outputs, inputs].
    """
    of_weights = np.max([np.abs(one).max(axis=0) for one in weights], axis=0)
    factors = np.maximum(activations, _SMALLEST) ** SMOOTHING / np.maximum(of_weights, _SMALLEST) ** (1 - SMOOTHING)
    smooth: Floats = (factors / np.exp(np.log(factors).mean())).astype(np.float32)
    return smooth


def quantize(weights: Floats, group: int) -> tuple[npt.NDArray[np.int8], Floats]:
    """int8 [outputs, groups, group] and scales float32 [outputs, groups, 1]; their product is about the weights.

    weights: [outputs, inputs]. group: input channels that share a scale; it divides `inputs`.
    """
    grouped = weights.reshape(len(weights), -1, group)
    scales = np.maximum(np.abs(grouped).max(axis=2, keepdims=True), np.finfo(np.float32).tiny) / LARGEST
    return np.clip(np.rint(grouped / scales), -LARGEST, LARGEST).astype(np.int8), scales.astype(np.float32)


def overlap(found: Floats, expected: Floats) -> float:
    """The share of the ten nearest that both have, over all texts. found, expected: [texts, dimensions]."""
    ours, theirs = _nearest(found), _nearest(expected)
    common = [len(np.intersect1d(one, other)) for one, other in zip(ours, theirs, strict=True)]
    return float(np.mean(common)) / ours.shape[1]


def _nearest(vectors: Floats) -> npt.NDArray[np.int64]:
    rows = unit(vectors)
    scores = rows @ rows.T
    np.fill_diagonal(scores, -np.inf)
    return np.argpartition(-scores, NEAREST, axis=1)[:, :NEAREST]


@dataclass(frozen=True)
class Chosen:
    """The result of a search: the products that are quantized, those that are not, and the overlap that was reached."""

    quantized: tuple[str, ...]
    kept: tuple[str, ...]
    quality: float

    def as_json(self) -> dict[str, Any]:
        return {"quantized": [*self.quantized], "kept": [*self.kept], "quality": self.quality}


def choose(
    sizes: Mapping[str, int],
    error_of: Callable[[str], float],
    quality_of: Callable[[Sequence[str]], float],
    quality: float,
) -> Chosen:
    """The largest set of products that reaches a quality: products with the largest error for their size are left out
    first.

    sizes: multiplications per token of each product. error_of: of the model's vectors, if only this product is
    quantized; the errors of products about add up. quality_of: the overlap, if these products are quantized. Raises
    ModelError if a quarter of all multiplications, in int8, is already too much.
    """
    names = list(sizes)
    if (reached := quality_of(names)) >= quality:
        return Chosen(tuple(names), (), reached)
    worst_first = sorted(names, key=lambda name: -error_of(name) / sizes[name])
    least_size = sum(sizes.values()) / 4
    most = max(count for count in range(len(names)) if sum(sizes[name] for name in worst_first[count:]) >= least_size)
    best, least, found = reached, 1, None
    while least <= most:
        middle = (least + most) // 2
        kept = set(worst_first[:middle])
        reached = quality_of([name for name in names if name not in kept])
        best = max(best, reached)
        if reached >= quality:
            quantized = tuple(name for name in names if name not in kept)
            found = Chosen(quantized, tuple(name for name in names if name in kept), reached)
            most = middle - 1
        else:
            least = middle + 1
    if found is None:
        # Rounded down: a message "0.980 is below 0.98" would be odd.
        raise ModelError(
            f"int8 keeps {math.floor(best * 1000) / 1000:.3f} of the ten nearest of the calibration texts, below"
            f" {quality:g} (--quantization-quality)"
        )
    return found
