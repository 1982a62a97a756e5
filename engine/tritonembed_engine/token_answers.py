"""The bytes of sparse and multi-vector answers."""

import json
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from tritonembed_engine import vectors
from tritonembed_engine.parameters import EmbedParameters
from tritonembed_engine.ragged import Ragged


def sparse_elements(found: Ragged, parameters: EmbedParameters, token: Callable[[int], str]) -> list[bytes]:
    """Per sentence: the count as int32, the ids in ascending order as int32, their weights as float32, little-endian.

    Weights up to `sparse_threshold` are left out, then all but the `top_k` largest. With `return_tokens`, the tokens
    of the ids follow as a JSON list of strings in UTF-8. token: of an id.
    """
    elements = []
    for start, stop in found.bounds():
        rows = found.rows[start:stop]
        if parameters.sparse_threshold:
            rows = rows[rows["weight"] > np.float32(parameters.sparse_threshold)]
        if parameters.top_k is not None and len(rows) > parameters.top_k:
            rows = rows[_largest(rows["weight"], parameters.top_k)]
        parts = [np.int32(len(rows)).tobytes(), rows["id"].tobytes(), rows["weight"].tobytes()]
        if parameters.return_tokens:
            parts.append(json.dumps(list(map(token, rows["id"].tolist())), ensure_ascii=False).encode())
        elements.append(b"".join(parts))
    return elements


def _largest(weights: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.bool_]:
    """Whether a weight is one of the `count` largest; of equal weights, the first ones are."""
    least = np.partition(weights, -count)[-count]
    kept: npt.NDArray[np.bool_] = weights > least
    kept[np.flatnonzero(weights == least)[: count - int(kept.sum())]] = True
    return kept


def multi_vector_elements(found: Ragged, parameters: EmbedParameters, model_normalizes: bool) -> list[bytes]:
    """Per sentence: the count of its vectors as int32, then the vectors, in the type that the request asks for.

    model_normalizes: whether the model's own vectors have length 1.
    """
    unit = vectors.wants_unit_length(parameters, model_normalizes)
    rows = found.rows
    if unit and found.norms is None:
        rows = vectors.normalized(rows)
    elif not unit and found.norms is not None:
        rows = rows * found.norms[:, None]
    encoded = vectors.finish(rows, parameters, unit)
    data = np.ascontiguousarray(encoded, encoded.dtype.newbyteorder("<"))
    # One copy, from the array: a batch may hold 100 MB.
    return [b"".join((np.int32(stop - start).tobytes(), data[start:stop].data)) for start, stop in found.bounds()]
