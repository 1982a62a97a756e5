"""From vectors to the bytes of the answer: Matryoshka cut, normalisation, quantisation; elements of ragged outputs.

Formulas as sentence-transformers has them (`quantize_embeddings`, `truncate_dim`), with two choices of our own that
need no calibration set: int8 scales by 127, uint8 is int8 + 128.
"""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from tritonembed_engine.errors import InvalidArgument
from tritonembed_engine.parameters import EmbedParameters
from tritonembed_engine.ragged import Ragged
from tritonembed_protocol.types import OUTPUT_TYPES

Vectors = npt.NDArray[np.float32]
Encoded = npt.NDArray[np.generic]


def dimensions_of(parameters: EmbedParameters, default: int | None) -> int | None:
    """The number of dimensions of a request's vectors; None: all. default: the model's `truncate_dim`."""
    return default if parameters.dimensions is None else parameters.dimensions


def check_dimensions(dimensions: int | None, available: int) -> None:
    """Raise InvalidArgument if a request asks for more dimensions than the model has."""
    if dimensions is not None and dimensions > available:
        raise InvalidArgument("dimensions", f"{dimensions} is over the model's {available}")


def wants_unit_length(parameters: EmbedParameters, model_normalizes: bool) -> bool:
    """Whether a request's vectors get length 1: int8 and uint8 always, else by its parameter or the model."""
    if OUTPUT_TYPES[parameters.embedding_type].unit_length:
        return True
    return model_normalizes if parameters.normalize is None else parameters.normalize


def finish(vectors: Vectors, parameters: EmbedParameters, normalize: bool, dimensions: int | None = None) -> Encoded:
    """Vectors in the type and number of dimensions that a request asks for.

    vectors: float32 [sentences, dimensions], of length 1 if `normalize`. dimensions: the default of their number (the
    model's `truncate_dim`); None: all. Returns [sentences, n]: float32, float16, int8 or uint8; n is the number of
    dimensions or, for `binary` and `ubinary`, an eighth of it, rounded up.
    """
    return encode(cut(vectors, parameters, normalize, dimensions), parameters)


def cut(vectors: Vectors, parameters: EmbedParameters, normalize: bool, dimensions: int | None = None) -> Vectors:
    """Vectors in the number of dimensions that a request asks for; arguments as those of `finish`."""
    wanted = dimensions_of(parameters, dimensions)
    if wanted is None:
        return vectors
    part = vectors[:, :wanted]
    # A part of a vector of length 1 is shorter. Normalising it again gives the same as cutting first.
    return normalized(part) if normalize else part


def encode(vectors: Vectors, parameters: EmbedParameters) -> Encoded:
    """Vectors in the type that a request asks for."""
    kind = OUTPUT_TYPES[parameters.embedding_type]
    return ENCODERS[kind.encoder](vectors, kind.dtype)


def norms_of(vectors: Vectors) -> Vectors:
    """Length of each row: float32 [sentences]; not finite if any number of the row is not."""
    norms: Vectors = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    return norms


def normalized(vectors: Vectors, norms: Vectors | None = None) -> Vectors:
    """Rows of length 1; a row of zeros stays zero (the floor is torch.nn.functional.normalize's).

    norms: the rows' lengths, if they are known.
    """
    if norms is None:
        norms = norms_of(vectors)
    scaled: Vectors = vectors / np.maximum(norms, np.float32(1e-12))[:, None]
    return scaled


def _cast(vectors: Vectors, dtype: np.dtype[Any]) -> Encoded:
    return vectors.astype(dtype, copy=False)


def _scale(vectors: Vectors, dtype: np.dtype[Any]) -> Encoded:
    scaled = np.clip(np.rint(vectors * 127), -127, 127)
    if dtype.kind == "u":
        scaled += 128
    rounded: Encoded = scaled.astype(dtype)
    return rounded


def _signs(vectors: Vectors, dtype: np.dtype[Any]) -> Encoded:
    bits: Encoded = np.packbits(vectors > 0, axis=1)
    return bits if dtype.kind == "u" else (bits.astype(np.int16) - 128).astype(dtype)


ENCODERS: dict[str, Callable[[Vectors, np.dtype[Any]], Encoded]] = {"cast": _cast, "scale": _scale, "signs": _signs}
"""Encoders, by their names in the table of output types."""


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
    unit = wants_unit_length(parameters, model_normalizes)
    rows = found.rows
    if unit and found.norms is None:
        rows = normalized(rows)
    elif not unit and found.norms is not None:
        rows = rows * found.norms[:, None]
    encoded = finish(rows, parameters, unit)
    data = np.ascontiguousarray(encoded, encoded.dtype.newbyteorder("<"))
    # One copy, from the array: a batch may hold 100 MB.
    return [b"".join((np.int32(stop - start).tobytes(), data[start:stop].data)) for start, stop in found.bounds()]
