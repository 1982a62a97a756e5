"""The embedding space of answers that do not name it, as Triton's own do not.

The client asks such a server once, and sends the space along with every further request. So the server itself checks it
by comparing two strings, and the space of an answer is right even if another model has taken the server's place.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any

from tritonclient.grpc import service_pb2

from tritonembed_protocol.framing import FramingError, frame, unframe
from tritonembed_protocol.space import HEADER, QUALITY, SPACE, is_quality, is_space, of_refusal

from ._errors import InvalidArgumentError, ServerError, TritonEmbedError
from .request import PROBES, PreparedRequest, contents_of

PATIENCE = 60.0
"""Seconds until a server that did not report its space is asked again."""
LONGEST_QUESTION = 5.0
"""Seconds for a server to report it; it has just answered."""
_ADAPTER = "adapter"


class KnownSpaces:
    """What servers have reported to a client, by the Triton model that was asked and the adapter."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._told: dict[tuple[str, str], str] = {}
        self._quiet_until: dict[tuple[str, str], float] = {}
        self._clock = clock

    def get(self, key: tuple[str, str]) -> str | None:
        """The space that was reported last; None if none was, or if it does not hold for every answer."""
        return self._told.get(key)

    def set(self, key: tuple[str, str], space: str | None) -> None:
        """None: don't ask for a while."""
        if space is None:
            self._told.pop(key, None)
            self._quiet_until[key] = self._clock() + PATIENCE
        else:
            self._told[key] = space

    def may_ask(self, key: tuple[str, str]) -> bool:
        """Whether a server may be asked now."""
        return self._clock() >= self._quiet_until.get(key, 0.0)


class SpaceOfCall:
    """The space of one call's requests and answers. model: the Triton model that reports it."""

    def __init__(self, known: KnownSpaces, model: str) -> None:
        self._known = known
        self._model = model
        self._key = (model, "")
        self._is_named: bool | None = None
        self._refused: set[int] = set()

    def prepare(self, request: PreparedRequest) -> PreparedRequest:
        """The request with the known space, for the server to check, unless the caller has named one."""
        parameters = request.message.parameters
        if self._is_named is None:
            self._is_named = SPACE in parameters
            self._key = (self._model, parameters[_ADAPTER].string_param if _ADAPTER in parameters else "")
        if not self._is_named and (space := self._known.get(self._key)) is not None:
            parameters[SPACE].string_param = space
        return request

    def is_in(self, request: PreparedRequest, response: Any) -> bool:
        """Whether the answer names its space, or the server has checked the request's; then the answer names that."""
        if SPACE in response.parameters:
            return True
        if SPACE not in request.message.parameters:
            return False
        response.parameters[SPACE].string_param = request.message.parameters[SPACE].string_param
        return True

    def take_header(self, response: Any, headers: Iterable[Any]) -> bool:
        """Whether the answer's headers name its space, as Envoy's do; then the answer names it, too."""
        space = next((str(value) for name, value in headers or () if name == HEADER), "")
        if is_space(space):
            response.parameters[SPACE].string_param = space
        return is_space(space)

    def question(self) -> Any:
        """The request that asks a server for its space; None if it is not to be asked now."""
        return space_question(*self._key) if self._known.may_ask(self._key) else None

    def take_answer(self, answer: Any, response: Any) -> None:
        """Read the answer to the question into ``response``; None if there is no answer."""
        # A manager's answers name their spaces, so a server behind it does not have to check what this client names.
        space = None if answer is None or SPACE in answer.parameters else space_told(answer)
        self._known.set(self._key, space)
        if space is not None:
            response.parameters[SPACE].string_param = space

    def again(self, request: PreparedRequest, error: TritonEmbedError) -> PreparedRequest | None:
        """The request to send instead of a request that was refused for its space, if the caller named none; else None.

        It names the space that the server has now. If that is refused, too, the servers have several spaces, and the
        client names none for a while.
        """
        parameters = request.message.parameters
        own = of_refusal(error.message) if isinstance(error, InvalidArgumentError) else None
        if self._is_named or own is None or SPACE not in parameters:
            return None
        if id(request.message) not in self._refused and self._known.may_ask(self._key):
            self._refused.add(id(request.message))
            self._known.set(self._key, own)
            parameters[SPACE].string_param = own
        else:
            self._known.set(self._key, None)
            del parameters[SPACE]
        return request.renewed()


def space_question(model: str, adapter: str = "") -> Any:
    """The request to a Triton model that reports its space, which it answers without a forward pass."""
    message = _question(model, SPACE)
    if adapter:
        message.parameters[_ADAPTER].string_param = adapter
    return message


def quality_question(model: str, space: str) -> Any:
    """The request for what int8 keeps. Of several servers behind one address, only those of the space may answer."""
    message = _question(model, QUALITY)
    message.parameters[SPACE].string_param = space
    return message


def _question(model: str, output: str) -> Any:
    message = service_pb2.ModelInferRequest(model_name=model, raw_input_contents=[frame([PROBES["token_ids"]])])
    message.inputs.add(name="token_ids", datatype="BYTES", shape=(1, 1))
    message.outputs.add(name=output)
    return message


def space_told(answer: Any) -> str | None:
    """The space in an answer to the question; None if it has none."""
    try:
        [found] = unframe(contents_of(answer, [SPACE])[SPACE])
        space = found.decode()
    except (ServerError, FramingError, ValueError):
        return None
    return space if is_space(space) else None


def quality_told(answer: Any) -> float | None:
    """The number in an answer to `quality_question`; None if it has none."""
    try:
        [found] = struct.unpack("<d", contents_of(answer, [QUALITY])[QUALITY])
    except (ServerError, struct.error):
        return None
    return found if is_quality(found) else None
