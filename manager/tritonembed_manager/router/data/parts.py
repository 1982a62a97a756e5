"""A large request that is sent in parts. Each part has its own server and failover; the caller gets one answer.

`Rows` splits a request by its rows, and `join` joins the answers, without a difference to the answer of the whole
request. Only a request whose rows have nothing to do with each other is split: BYTES inputs in raw_input_contents, with
as many rows each (one input, or queries and texts), the outputs with a row per sentence, and parameters that hold for
each row alone. All other requests go whole.

If a part may have killed a server, or is refused as wrong, the request goes on whole: then there is one suspect, and
the error numbers the sentence as its sender does.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from struct import Struct
from struct import error as StructError

import grpc
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2

from tritonembed_manager.router.data import spaces
from tritonembed_manager.router.data.front_queue import Begin, FrontQueue
from tritonembed_manager.router.data.protobuf import BYTES, Fields, field
from tritonembed_manager.router.data.request import BrokenAnswer, ForwardedRequest
from tritonembed_manager.router.data.upstream import Attempt, Upstream
from tritonembed_manager.router.data.window import MOST_PER_ROW
from tritonembed_manager.router.interfaces import DispatchError
from tritonembed_protocol.limits import MAX_BATCH_SIZE, MAX_REQUEST_BYTES
from tritonembed_protocol.served import FIRST_MODEL, ServedModel
from tritonembed_protocol.space import SPACE
from tritonembed_protocol.types import TENSORS

_OUTPUTS = {*TENSORS.values(), "num_tokens", "score"}
_PARAMETERS = {
    *("truncate", "input_type", "prompt_name", "prompt", "instruction", "dimensions", "embedding_type", "normalize"),
    *("outputs", "top_k", "sparse_threshold", "return_tokens", "activation", "max_text_tokens"),
    *("priority", "timeout", SPACE),
}
_NAME, _PARAMETER, _INPUT, _OUTPUT, _RAW = 1, 4, 5, 6, 7
_size_at = Struct("<I").unpack_from


class Rows:
    """A request that can be split. tensors, raw: its inputs, of as many rows each, and their contents.

    Raises struct.error if a content is shorter than its header states.
    """

    def __init__(
        self, head: bytes, tensors: Sequence[service_pb2.ModelInferRequest.InferInputTensor], raw: Sequence[bytes]
    ) -> None:
        self._head = head
        self._tensors = tensors
        self._raw = raw
        rows = tensors[0].shape[0]
        self._ends_of = [_ends(content, rows) for content in raw]
        self._ends = [sum(ends) for ends in zip(*self._ends_of, strict=True)]
        """Bytes of all inputs up to each row."""
        self._taken = 0

    @property
    def left(self) -> int:
        """The number of rows that are not taken yet."""
        return len(self._ends) - 1 - self._taken

    def take(self, most: int) -> tuple[bytes, int, int, int]:
        """The next part, with about `most` bytes of rows and at least one row.

        Returns the encoded ModelInferRequest, its rows, the bytes of these rows, and those that no model reads because
        a text is cut off (window.py).
        """
        ends, first = self._ends, self._taken
        stop = first + 1
        while stop < len(ends) - 1 and ends[stop + 1] - ends[first] <= most:
            stop += 1
        self._taken = stop
        parts = [self._head]
        for tensor in self._tensors:
            tensor.shape[0] = stop - first
            parts.append(field(_INPUT, tensor.SerializeToString()))
        for own, raw in zip(self._ends_of, self._raw, strict=True):
            parts.append(field(_RAW, raw[own[first] : own[stop]]))
        sizes = (own[row + 1] - own[row] - 4 for own in self._ends_of for row in range(first, stop))
        unread = sum(max(size - MOST_PER_ROW, 0) for size in sizes)
        return b"".join(parts), stop - first, ends[stop] - ends[first], unread


def _ends(content: bytes, rows: int) -> list[int]:
    """The index at which each row begins, and the end of the last. Raises struct.error if the content is too short."""
    at, ends = 0, [0]
    for _ in range(rows):
        at += 4 + _size_at(content, at)[0]
        ends.append(at)
    return ends


def _inputs_of(served: ServedModel, model: str) -> set[str] | None:
    """The inputs of a Triton model whose rows can be split; None for other models."""
    if model == served.embedder:
        return {"token_ids"}
    if served.task == "score":
        return {served.name: {"query", "text"}, served.classify: {"text"}}.get(model)
    return {"text"} if model == served.name else None


def rows_of(message: bytes, served: ServedModel = FIRST_MODEL) -> Rows | None:
    """The rows of an encoded ModelInferRequest that read_envelope accepted; None if it has to go whole.

    served: the model that it is for.
    """
    head: list[bytes] = []
    inputs: list[bytes] = []
    raw: list[bytes] = []
    model = ""
    for number, kind, begin, at, end in Fields(message).within(0, len(message)):
        if kind != BYTES:
            return None
        if number == _INPUT:
            inputs.append(message[at:end])
        elif number == _RAW:
            raw.append(message[at:end])
        else:
            head.append(message[begin:end])
            if number == _NAME:
                model = message[at:end].decode()
    try:
        rest = service_pb2.ModelInferRequest.FromString(b"".join(head))
        tensors = [service_pb2.ModelInferRequest.InferInputTensor.FromString(each) for each in inputs]
    except DecodeError:
        return None
    outputs = {output.name for output in rest.outputs}
    if (
        not tensors
        or len(raw) != len(tensors)
        or sum(map(len, raw)) > MAX_REQUEST_BYTES
        or {tensor.name for tensor in tensors} != _inputs_of(served, model)
        or len({tensor.name for tensor in tensors}) != len(tensors)
        or len({tuple(tensor.shape) for tensor in tensors}) != 1
        or any(tensor.datatype != "BYTES" or tensor.parameters or tensor.HasField("contents") for tensor in tensors)
        or list(tensors[0].shape[1:]) != [1]
        or not 1 < tensors[0].shape[0] <= MAX_BATCH_SIZE
        or not set(rest.parameters) <= _PARAMETERS
        or not outputs <= _OUTPUTS
        or (model == served.embedder and not outputs)
        or len(outputs) != len(rest.outputs)
        or any(output.parameters for output in rest.outputs)
    ):
        return None
    try:
        return Rows(b"".join(head), tensors, raw)
    except StructError:
        return None


def join(answers: Sequence[bytes], rows: Sequence[int]) -> bytes:
    """The encoded ModelInferResponse of a request, from those of its parts, in order. rows: of each part.

    Servers may order their outputs differently. Raises BrokenAnswer if the answers do not fit together.
    """
    parts = [service_pb2.ModelInferResponse.FromString(answer) for answer in answers]
    whole = parts[0]
    places = [{output.name: place for place, output in enumerate(part.outputs)} for part in parts]
    contents = []
    for output in whole.outputs:
        for part, found in zip(parts, places, strict=True):
            place = found.get(output.name, -1)
            other = part.outputs[place] if place >= 0 else None
            if other is None or (other.datatype, other.shape[1:]) != (output.datatype, output.shape[1:]):
                raise BrokenAnswer("parts of an answer with different outputs")
        contents.append(
            b"".join(part.raw_output_contents[found[output.name]] for part, found in zip(parts, places, strict=True))
        )
    for output in whole.outputs:
        output.shape[0] = sum(rows)
    whole.raw_output_contents[:] = contents
    found_spaces = {spaces.in_answer(answer) for answer in answers}
    # The space is at the end of the answer, as in an answer of one server.
    if SPACE in whole.parameters:
        del whole.parameters[SPACE]
    return bytes(whole.SerializeToString()) + (spaces.parameter(found_spaces.pop()) if len(found_spaces) == 1 else b"")


Follow = Callable[[ForwardedRequest, Upstream, Attempt], Awaitable[bytes]]


class GoWholeError(Exception):
    """The request has to be sent whole."""


class Parts:
    """begin: sends a part to a server. follow: returns the answer to a part that was sent, from whatever server."""

    def __init__(self, request: ForwardedRequest, rows: Rows, queue: FrontQueue, begin: Begin, follow: Follow) -> None:
        self._queue = queue
        self._request = request
        self._rows = rows
        self._begin = begin
        self._follow = follow
        self._parts: list[ForwardedRequest] = []
        self._tasks: list[asyncio.Task[bytes]] = []
        self._answered = 0
        self._asked = request.envelope.space
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def answer(self) -> bytes:
        """Send all parts, each in its turn. Returns the answer to the whole request.

        Raises DispatchError, BrokenAnswer, and GoWholeError; `tried` and `breaks` of the request then name the servers
        that broke under its parts.
        """
        try:
            with self._queue.waiting(self._request, self._send, self._done):
                await self._done
            return join([task.result() for task in self._tasks], [part.envelope.rows for part in self._parts])
        except DispatchError as error:
            if error.code is grpc.StatusCode.INVALID_ARGUMENT:
                raise GoWholeError from None
            raise
        finally:
            for task in self._tasks:
                task.cancel()
            # The parts' slots must be free before the request goes on or leaves.
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._take_over_breaks()
            self._request.envelope.space = self._asked

    def _send(self, server: Upstream, most: int) -> int:
        if self._done.done():
            return 0
        request = self._request
        message, count, taken, cut = self._rows.take(most)
        cut = cut if request.envelope.cut else 0
        envelope = replace(request.envelope, rows=count, cut=cut)
        part = ForwardedRequest(
            message, envelope, request.metadata, request.admitted, request.arrived, request.start_by, is_part=True
        )
        try:
            attempt = self._begin(part, server)
        except DispatchError as error:
            self._done.set_exception(error)
            return 0
        # All vectors of an answer are of one space, wherever a part is sent or sent again.
        envelope.space = request.envelope.space = request.envelope.space or attempt.space
        self._parts.append(part)
        task = asyncio.ensure_future(self._follow(part, server, attempt))
        task.add_done_callback(self._ended)
        self._tasks.append(task)
        return taken - cut if self._rows.left else request.work

    def _ended(self, task: "asyncio.Task[bytes]") -> None:
        if self._done.done():
            return
        if task.cancelled():
            self._done.cancel()
        elif error := task.exception():
            self._done.set_exception(error)
        else:
            self._answered += 1
            if not self._rows.left and self._answered == len(self._tasks):
                self._done.set_result(None)

    def _take_over_breaks(self) -> None:
        """A server that broke under several parts broke once."""
        for part in self._parts:
            for incarnation in part.tried:
                if incarnation not in self._request.tried:
                    self._request.tried.append(incarnation)
            for found in part.breaks:
                if all(found.server is not other.server for other in self._request.breaks):
                    self._request.breaks.append(found)
