"""From pooled vectors to the bytes of the answer: Matryoshka cut, normalisation, quantisation.

Formulas as sentence-transformers has them (`quantize_embeddings`, `truncate_dim`), with two choices of our own that
need no calibration set: int8 scales by 127, uint8 is int8 + 128.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from tritonembed_engine.errors import InvalidArgument
from tritonembed_engine.parameters import EmbedParameters

Vectors = npt.NDArray[np.float32]


def dimensions_of(parameters: EmbedParameters, default: int | None) -> int | None:
    """How many dimensions a request's vectors have, where that is not all. default: the model's `truncate_dim`."""
    return default if parameters.dimensions is None else parameters.dimensions


def check_dimensions(dimensions: int | None, available: int) -> None:
    """Raise InvalidArgument where a request asks for more dimensions than the model has."""
    if dimensions is not None and dimensions > available:
        raise InvalidArgument("dimensions", f"{dimensions} is over the model's {available}")


def wants_unit_length(parameters: EmbedParameters, model_normalizes: bool) -> bool:
    """Whether a request's vectors are normalised: as it says, else as the model does; the integer types always."""
    if parameters.embedding_type in ("int8", "uint8"):
        return True
    return model_normalizes if parameters.normalize is None else parameters.normalize


def finish(
    vectors: Vectors, parameters: EmbedParameters, normalize: bool, dimensions: int | None = None
) -> npt.NDArray[np.generic]:
    """Vectors as one request asked for them.

    vectors: float32 [sentences, dimensions], of length 1 if `normalize`. dimensions: their number where the request
    names none (the model's `truncate_dim`); None: all. Gives [sentences, n]: float32, float16, int8
    or uint8; n is the dimensions or, for `binary` and `ubinary`, their eighth, rounded up.
    """
    wanted = dimensions_of(parameters, dimensions)
    if wanted is not None:
        cut = vectors[:, :wanted]
        # What is cut from a vector of length 1 is shorter; normalising it again gives what cutting first would have.
        vectors = normalized(cut) if normalize else cut
    return ENCODERS[parameters.embedding_type](vectors)


def norms_of(vectors: Vectors) -> Vectors:
    """Length of each row: float32 [sentences]; not finite where any number of the row is not."""
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


def row_bytes(rows: npt.NDArray[np.generic]) -> list[bytes]:
    """Each row's little-endian bytes."""
    data = np.ascontiguousarray(rows, dtype=rows.dtype.newbyteorder("<")).tobytes()
    width = rows.shape[1] * rows.dtype.itemsize
    return [data[start : start + width] for start in range(0, len(data), width)]


def _int8(vectors: Vectors) -> npt.NDArray[np.int8]:
    rounded: npt.NDArray[np.int8] = np.clip(np.rint(vectors * 127), -127, 127).astype(np.int8)
    return rounded


def _uint8(vectors: Vectors) -> npt.NDArray[np.uint8]:
    return (_int8(vectors).astype(np.int16) + 128).astype(np.uint8)


def _ubinary(vectors: Vectors) -> npt.NDArray[np.uint8]:
    return np.packbits(vectors > 0, axis=1)


def _binary(vectors: Vectors) -> npt.NDArray[np.int8]:
    return (_ubinary(vectors).astype(np.int16) - 128).astype(np.int8)


ENCODERS: dict[str, Callable[[Vectors], npt.NDArray[np.generic]]] = {
    "float": lambda vectors: vectors,
    "float16": lambda vectors: vectors.astype(np.float16),
    "int8": _int8,
    "uint8": _uint8,
    "binary": _binary,
    "ubinary": _ubinary,
}
