"""A request on its way: what is forwarded, its deadline, the servers that it was sent to, and the check of its answer.

A broken server may send an incomplete answer, which must not reach a client. Tokens are counted here because every
server reports them in its answers. The engine's counters on the metrics port can't replace that: they include health
checks, and the metrics of some servers can't be read.
"""

import math
import re
from dataclasses import dataclass, field

import grpc
import numpy as np

from tritonembed_manager.router.data import spaces
from tritonembed_manager.router.data.envelope import Envelope, read_envelope
from tritonembed_manager.router.data.failover import Break
from tritonembed_manager.router.data.model_names import OF_TRITON, check_name
from tritonembed_manager.router.data.protobuf import BYTES, RefusedMessage, WrongMessage, read_varint, with_timeout
from tritonembed_manager.router.data.upstream import Incarnation
from tritonembed_manager.router.interfaces import Admission, DispatchError, Metadata

_LONGEST_S = 1e9
"""Thirty years: longer times do not fit into gRPC's clock."""
_CODE = grpc.StatusCode
_KNOWN = tuple(name.encode() for name in OF_TRITON)
"""Names that need no check."""
_KEY = re.compile(r"[0-9a-z_.-]+")
"""Valid names of metadata (gRPC over HTTP/2, "Custom-Metadata")."""
_HOP = ("user-agent", "te", "host", "content-type", "accept-encoding", "content-length", "connection")
SECRETS = ("authorization", "x-api-key", "api-key", "proxy-authorization", "cookie")
"""Secrets between the caller and this manager."""
_NOT_FORWARDED = frozenset((*_HOP, *SECRETS))
EXPIRED = "the deadline passed before a server could answer"
_SPARE_S, _SPARE_PART = 0.02, 0.1
"""Give up on a waiting request this long before its deadline: the smaller of 20 ms and 10 % of its time."""


@dataclass(slots=True)
class ForwardedRequest:
    """Times are in seconds of the dispatcher's clock."""

    message: bytes
    envelope: Envelope
    metadata: Metadata | None
    """The part of the caller's metadata that the server receives."""
    admitted: Admission
    """The caller's request that this is, or is a part of. At its deadline the caller stops waiting."""
    arrived: float
    start_by: float
    """The deadline, or the end of the caller's KServe `timeout` if that is earlier. No attempt begins after it."""
    tried: list[Incarnation] = field(default_factory=list)
    breaks: list[Break] = field(default_factory=list)
    """The breaks of servers that this request may have killed."""
    alone: bool = False
    """Whether the request goes to its next server alone (failover.py)."""
    is_part: bool = False
    """Whether it is a part of a large request (parts.py)."""

    @property
    def work(self) -> int:
        """The request's work in bytes; see window.py."""
        return len(self.message) - self.envelope.cut

    def give_up_at(self, now: float) -> float:
        """When to give up on the request if it waits since `now`.

        If the caller's own clock ran out first, the caller would not receive the reason.
        """
        return self.start_by - min(_SPARE_S, (self.start_by - now) * _SPARE_PART)

    @property
    def is_suspected(self) -> bool:
        """Whether this request may have killed a server."""
        return bool(self.breaks) and bool(self.open_breaks())

    def open_breaks(self) -> list[Break]:
        """Breaks that no health check has dismissed."""
        return [found for found in self.breaks if not found.dismissed]

    def timed_message(self, now: float, more: bytes) -> bytes:
        """The message to send now, with the time left as `timeout`. Raises DispatchError if no time is left.

        more: encoded fields.
        """
        left = self.start_by - now
        if left <= 0:
            raise DispatchError(_CODE.DEADLINE_EXCEEDED, EXPIRED)
        return with_timeout(self.message, left, more) if self.envelope.timed else self.message + more


def read(message: bytes) -> Envelope:
    """The envelope of a request. Raises DispatchError for a request that no server may receive."""
    try:
        envelope = read_envelope(message)
        if envelope.model not in _KNOWN or envelope.version:
            check_name(envelope.model.decode(), envelope.version.decode())
        return envelope
    except (WrongMessage, UnicodeDecodeError):
        raise DispatchError(_CODE.INVALID_ARGUMENT, "these bytes are not a valid ModelInferRequest") from None
    except RefusedMessage as error:
        raise DispatchError(_CODE.INVALID_ARGUMENT if error.supported else _CODE.UNIMPLEMENTED, str(error)) from None


def prepare(
    message: bytes, envelope: Envelope, metadata: Metadata | None, now: float, admitted: Admission
) -> ForwardedRequest:
    """The request to send. metadata: the part of the caller's that is forwarded."""
    start_by = admitted.deadline
    if envelope.timeout is not None:
        start_by = min(start_by, now + envelope.timeout)
    envelope.space = envelope.space or spaces.in_metadata(metadata)
    return ForwardedRequest(message, envelope, metadata, admitted, now, start_by)


def seconds(timeout: float | None, default: float) -> float:
    """A timeout that gRPC accepts."""
    asked = default if timeout is None else timeout
    return min(asked, _LONGEST_S) if math.isfinite(asked) else _LONGEST_S


def forwarded(metadata: Metadata) -> Metadata | None:
    """The part of a caller's metadata that is forwarded to Triton, without the caller's connection and keys.

    Raises DispatchError for an entry that gRPC can't send: gRPC would neither send the request nor ever answer.
    """
    kept = [pair for pair in metadata if pair[0] not in _NOT_FORWARDED and not pair[0].startswith(("grpc-", ":"))]
    for name, value in kept:
        if not _KEY.fullmatch(name):
            raise DispatchError(grpc.StatusCode.INVALID_ARGUMENT, "the name of a metadata entry can't be passed on")
        if not name.endswith("-bin") and not (isinstance(value, str) and value.isascii() and value.isprintable()):
            message = f"metadata {name}: its value has a byte that is not printable ASCII, and can't be passed on"
            raise DispatchError(grpc.StatusCode.INVALID_ARGUMENT, message)
    return kept or None


_OUTPUT, _RAW = 5 << 3 | BYTES, 6 << 3 | BYTES
"""First byte of the fields `outputs` and `raw_output_contents`."""
_VECTORS, _TOKENS, _SCORES = b"\x0a\x09embedding", b"\x0a\x0anum_tokens", b"\x0a\x05score"
"""First bytes of an output: field 1 (name), with its length. Triton writes that field first."""
_MOST_FIELDS = 64
"""An answer of the ensemble has seven fields: name, version, id, two outputs and two raw contents. A broken server may
send millions."""
_HEADER = 4
_INT32, _FP32 = np.dtype("<i4"), np.dtype("<f4")


class BrokenAnswer(ValueError):
    """An answer that a working server does not send. The message is the reason."""


def read_answer(answer: bytes | None, rows: int) -> int:
    """The sum of `num_tokens` in an answer; 0 if the answer has none (not every caller asks for them).

    answer: None if gRPC had none. rows: elements of the request's BYTES inputs, 0 if there are none. The answer must
    hold `rows` vectors, all of one size, or finite scores, as many for each row; and `rows` token counts. Raises
    BrokenAnswer.
    """
    if not answer:
        raise BrokenAnswer("an empty answer")
    try:
        outputs, raw = _fields(answer)
    except (IndexError, WrongMessage):
        raise BrokenAnswer("an incomplete answer") from None
    if not outputs or len(outputs) != len(raw):
        raise BrokenAnswer(f"an answer with {len(outputs)} outputs but the contents of {len(raw)}")
    tokens = 0
    for (start, stop), (at, end) in zip(outputs, raw, strict=True):
        if not rows:
            continue
        if answer.startswith(_VECTORS, start) and answer.find(b"BYTES", start, stop) > 0:
            _check_vectors(answer, at, end, rows)
        elif answer.startswith(_SCORES, start) and answer.find(b"FP32", start, stop) > 0:
            _check_scores(answer, at, end, rows)
        elif answer.startswith(_TOKENS, start) and answer.find(b"INT32", start, stop) > 0:
            if end - at != rows * _INT32.itemsize:
                raise BrokenAnswer(f"other than {rows} numbers of tokens")
            tokens = _sum(answer, at, rows)
    return tokens


def _fields(answer: bytes) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Start and end of each output and of each raw content. Raises IndexError, WrongMessage or BrokenAnswer."""
    outputs: list[tuple[int, int]] = []
    raw: list[tuple[int, int]] = []
    at, end = 0, len(answer)
    for _ in range(_MOST_FIELDS):
        if at == end:
            return outputs, raw
        tag, length = answer[at], answer[at + 1]
        at += 2
        if length > 0x7F:
            length, at = read_varint(answer, at - 1)
        stop = at + length
        if stop > end:
            raise IndexError
        if tag == _OUTPUT:
            outputs.append((at, stop))
        elif tag == _RAW:
            raw.append((at, stop))
        elif tag & 7 != BYTES or tag > 0x7F:
            break
        at = stop
    raise BrokenAnswer("an answer that is not a ModelInferResponse")


def _check_vectors(answer: bytes, at: int, end: int, rows: int) -> None:
    stride, rest = divmod(end - at, rows)
    size = int.from_bytes(answer[at : at + _HEADER], "little")
    # If all vectors have the size that the first header gives, the last header is at this index.
    last = end - stride
    if rest or size + _HEADER != stride or answer[at : at + _HEADER] != answer[last : last + _HEADER]:
        raise BrokenAnswer(f"other than {rows} vectors of one size")


def _check_scores(answer: bytes, at: int, end: int, rows: int) -> None:
    count, rest = divmod(end - at, rows * _FP32.itemsize)
    if rest or not count:
        raise BrokenAnswer(f"other than scores of {rows} rows")
    if not np.isfinite(np.frombuffer(answer, _FP32, rows * count, at)).all():
        raise BrokenAnswer("a score that is not finite")


def _sum(answer: bytes, at: int, rows: int) -> int:
    if rows == 1:
        return max(0, int.from_bytes(answer[at : at + _INT32.itemsize], "little", signed=True))
    return max(0, int(np.frombuffer(answer, _INT32, rows, at).sum()))
