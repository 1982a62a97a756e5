"""The embedding space of requests and answers on their way through a worker.

A health check reads a server's space. Each request for vectors is sent with that space as a parameter. A server that
has another space by then refuses the request, so the space of an answer is one that the server itself has checked. The
answer gets the same parameter, from which the endpoints make their headers.
"""

import functools
from collections.abc import Collection, Iterable, Sequence

import grpc

from tritonembed_manager.router.data import protobuf
from tritonembed_manager.router.data.upstream import Upstream
from tritonembed_manager.router.interfaces import DispatchError, Metadata
from tritonembed_protocol.space import HEADER, SPACE, of_adapter, of_another_space

CHANGED = "it has another embedding space now"
"""The reason why a server is broken if it refuses the space of its last check."""
_KEY = 1
"""The field of an entry in a map of parameters."""
_HEAD = protobuf.field(_KEY, SPACE.encode())
_LONGEST_ENTRY = 256


def of_request(model: bytes, with_vectors: Collection[bytes], server: Upstream) -> str:
    """The space to send with a request; empty if the server's is not known, or if the model makes no vectors.

    with_vectors: the Triton models that make vectors.
    """
    return server.view.space if model in with_vectors else ""


@functools.lru_cache(maxsize=256)
def _of_adapter(space: str, digest: str) -> str:
    return of_adapter(space, digest)


def of_vectors(space: str, adapter: str, server: Upstream) -> str:
    """The space of a request's vectors. space: the model's. adapter: the request's; empty for none."""
    return _of_adapter(space, server.view.adapters.get(adapter, "")) if adapter else space


def of_base(wanted: str, adapter: str, serving: Sequence[Upstream]) -> str:
    """The model's space that gives an adapter the requested space. Raises DispatchError."""
    for server in serving:
        if of_vectors(server.view.space, adapter, server) == wanted:
            return server.view.space
    raise no_such_space(of_vectors(server.view.space, adapter, server) for server in serving)


@functools.lru_cache(maxsize=256)
def parameter(space: str) -> bytes:
    """The space as a parameter, to be appended to an encoded request or answer; nothing for an empty one."""
    if not space:
        return b""
    return protobuf.parameter(SPACE, space)


def in_answer(answer: bytes) -> str:
    """The space at the end of an answer; empty if it has none."""
    start = answer.rfind(_HEAD, max(0, len(answer) - _LONGEST_ENTRY))
    if start < 0:
        return ""
    # After the key: the tag and the length of the value, and those of its text.
    space = answer[start + len(_HEAD) + 4 :].decode(errors="replace")
    return space if answer.endswith(parameter(space)) else ""


def in_metadata(metadata: Metadata | None) -> str:
    """The space that a caller asks for in a header; empty for any."""
    return next((str(value) for name, value in metadata or () if name == HEADER), "")


def headers_of(spaces: Iterable[str | None]) -> dict[str, str]:
    """The header of an answer whose parts are of these spaces; a list if one model has several precisions."""
    found = sorted({space for space in spaces if space})
    return {HEADER: ", ".join(found)} if found else {}


def only(candidates: Sequence[Upstream], space: str, serving: Sequence[Upstream]) -> list[Upstream]:
    """The candidates of a space. Raises DispatchError if servers are serving, but none of them has the space."""
    if serving and all(server.view.space != space for server in serving):
        raise no_such_space(server.view.space for server in serving)
    return [server for server in candidates if server.view.space == space]


def no_such_space(own: Iterable[str]) -> DispatchError:
    """The error for a request that asks for a space that no server has. own: the servers' spaces; empty: not known."""
    known = sorted(set(own) - {""})
    reason = of_another_space(" and ".join(known)) if known else "the servers do not report theirs"
    return DispatchError(grpc.StatusCode.INVALID_ARGUMENT, f"{SPACE}: {reason}")
