"""gRPC metadata: pairs sent as HTTP headers beside a request, such as credentials."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

Metadata = Mapping[str, str | bytes] | Iterable[tuple[str, str | bytes]]
Pairs = tuple[tuple[str, str | bytes], ...]

_NAME = re.compile(r"[0-9a-z_.-]+")
_VALUE = re.compile(r"[ -~]*")


def metadata_pairs(metadata: Metadata | None) -> Pairs:
    """The pairs with their names in lower case, as HTTP/2 wants them.

    Raises ValueError for what cannot be sent, naming the pair by its name only: gRPC's own error would print the
    value, which may be a secret.
    """
    if metadata is None:
        return ()
    items = metadata.items() if isinstance(metadata, Mapping) else metadata
    return tuple(_pair(name.lower(), value) for name, value in items)


def _pair(name: str, value: str | bytes) -> tuple[str, str | bytes]:
    if not _NAME.fullmatch(name) or name.startswith("grpc-"):
        raise ValueError(f"metadata: {name!r} is no name of a header")
    if name.endswith("-bin"):
        if not isinstance(value, bytes):
            raise ValueError(f"metadata {name}: the value of a name that ends with -bin is bytes")
    elif not isinstance(value, str) or not _VALUE.fullmatch(value):
        raise ValueError(f"metadata {name}: the value is not a str of printable ASCII characters")
    return name, value
