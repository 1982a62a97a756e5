"""The embedding space of vectors: which model made them, and in which precision ("3f2a9c01b7de-float32").

Vectors can be compared if their spaces are equal. A request that names a space gets vectors of that space, or an error.
"""

import hashlib
import re

SPACE = "embedding_space"
"""The request's parameter, the parameter in a manager's answers, and the output of `embedder`."""
HEADER = "x-embedding-space"
"""The space's name as an HTTP header and as gRPC metadata, in both directions."""
QUALITY = "quantization_quality"
"""The output of an `embedder` in int8: FP64, the part of the ten nearest of the calibration texts that int8 keeps."""

_REFUSAL = "the vectors here are of the space "
_REFUSED = re.compile(rf"{_REFUSAL}([0-9A-Za-z._-]{{1,64}}), ")
_FORM = re.compile(r"[0-9A-Za-z._-]{1,64}")


def is_space(text: str) -> bool:
    """Whether the text can be a space. Servers send it, and it goes into headers."""
    return _FORM.fullmatch(text) is not None


def has_quality(space: str) -> bool:
    """Whether a server of this space has quantized the model itself, so that it can report the output QUALITY."""
    return space.endswith("-int8")


def is_quality(number: float) -> bool:
    """Whether the number can be a QUALITY. Servers send it, and it goes into JSON."""
    return 0 <= number <= 1


def model_part(space: str) -> str:
    """What distinguishes models: the space without its precision."""
    return space.rpartition("-")[0]


def of_adapter(space: str, digest: str) -> str:
    """The space of a model with an adapter. space: of the model; empty if it is not known. digest: of the adapter."""
    if not (space and digest):
        return ""
    model, _, precision = space.rpartition("-")
    return f"{hashlib.sha256(f'{model} {digest}'.encode()).hexdigest()[: len(model)]}-{precision}"


def of_another_space(own: str) -> str:
    """The reason to refuse a request for another space than `own`."""
    return f"{_REFUSAL}{own}, not of the one that is asked for"


def of_refusal(message: str) -> str | None:
    """The server's own space in its error about another one; None if it is another error, or names several."""
    found = _REFUSED.search(message)
    return found[1] if found else None


def is_refusal(message: str | None) -> bool:
    """Whether a server's error is about another space."""
    return message is not None and _REFUSAL in message
