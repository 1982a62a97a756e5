"""Tokens of each answer: if a caller does not ask for `num_tokens`, it is asked for here, and left out again."""

from collections.abc import Collection

from tritonembed_manager.router.data.protobuf import BYTES, Fields, field

_NAME, _OUTPUTS = 1, 6
"""Fields of ModelInferRequest."""
_RESPONSE_OUTPUTS, _RAW = 5, 6
"""Fields of ModelInferResponse."""
_COUNT = b"num_tokens"
_ASKED = field(_OUTPUTS, field(_NAME, _COUNT))


def asked(request: bytes, counted: Collection[bytes]) -> tuple[str, bool]:
    """Of an encoded ModelInferRequest: the model, and whether its answer lacks `num_tokens` though it could have it.

    counted: the models with an output `num_tokens`.
    Without any output in the request, Triton sends all. Raises ValueError for bytes that are no such request.
    """
    fields = Fields(request)
    model, outputs = b"", []
    for number, kind, _, at, end in fields.within(0, len(request)):
        if kind == BYTES and number == _NAME:
            model = request[at:end]
        elif kind == BYTES and number == _OUTPUTS:
            outputs.append(_name(fields, request, at, end))
    return model.decode(), bool(outputs) and model in counted and _COUNT not in outputs


def with_count(request: bytes) -> bytes:
    """The request, asking for `num_tokens`, too: a field may be appended to an encoded message."""
    return request + _ASKED


def without_count(answer: bytes) -> bytes:
    """The encoded ModelInferResponse without the output `num_tokens`."""
    fields = Fields(answer)
    names: list[bytes] = []
    spans: dict[int, list[tuple[int, int]]] = {_RESPONSE_OUTPUTS: [], _RAW: []}
    for number, kind, begin, at, end in fields.within(0, len(answer)):
        if kind == BYTES and number in spans:
            spans[number].append((begin, end))
            if number == _RESPONSE_OUTPUTS:
                names.append(_name(fields, answer, at, end))
    if _COUNT not in names:
        return answer
    place = names.index(_COUNT)
    kept, at = [], 0
    for begin, end in sorted(spans[which][place] for which in spans):
        kept.append(answer[at:begin])
        at = end
    return b"".join((*kept, answer[at:]))


def _name(fields: Fields, message: bytes, at: int, end: int) -> bytes:
    name = b""
    for number, kind, _, start, stop in fields.within(at, end):
        if kind == BYTES and number == _NAME:
            name = message[start:stop]
    return name
