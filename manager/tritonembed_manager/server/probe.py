"""Requests the vectors of fixed sentences from a Triton server. They show its health and its model."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from tritonembed_manager.server.client_tls import ClientTls, open_channel
from tritonembed_manager.server.repository import ADAPTERS_PARAMETER, LENGTH_PARAMETER, read_digests
from tritonembed_protocol.framing import HEADER, FramingError, frame, unframe, unframe_vectors
from tritonembed_protocol.served import FIRST_MODEL, ServedModel
from tritonembed_protocol.space import QUALITY, SPACE, has_quality, is_quality, is_space
from tritonembed_protocol.status import is_about_models
from tritonembed_protocol.tls import tls_reason
from tritonembed_protocol.types import HEALTH_CHECK_ID, MULTI_VECTOR, OUTPUT_TYPES, SPARSE

SENTENCES = (
    "ready?",
    "The vectors of this sentence tell one model from another.",
    "A longer one shows how its tokens are pooled: the first, the last, or the mean of all of them, in any language.",
)
"""Short, because every server embeds them at each check."""

Vectors = NDArray[np.float32]
"""[sentence, dimension]"""


_SERVICE = "/inference.GRPCInferenceService"
_MICROSECONDS = 1_000_000
_MOST_DIGITS = 10
QUERY = "which model is it?"
"""The query for models that score pairs, used with each of the sentences."""
_LEAST = {"embed": HEADER + 1, "score": 4}
"""Bytes of an answer with one vector or score."""
_ANY_TOKEN = bytes(4)
_DOUBLE = 8
_NONE: Mapping[str, str] = MappingProxyType({})
_LACKS_OUTPUT = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED)
"""Codes of a server without the model or its output."""
_OPTIONS = (
    # Reconnect soon to a restarted server: gRPC's own backoff grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # The time for an attempt to connect, with TLS over a slow network or on a busy machine.
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 500),
    # Otherwise the channels of one process to one address share a connection and its backoff.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)
# In the errors of Triton and of the engine for an expired request, and in Triton's error for a full queue.
_EXPIRED = ("timeout expired", "deadline passed")
_FULL = "maximum queue size"
_FIRST = 1
"""KServe's priority of a check: ahead of waiting requests, if Triton's queues have priorities."""
# Errors of gRPC itself.
_NO_CONNECTION = "failed to connect"
_NOBODY = ("Connection refused", "No such file or directory")
_SLOWLY = ("timed out", "handshaker shutdown", "Timeout occurred")
"""Timeouts of TCP, of HTTP/2's first frame, and of TLS."""
_NO_MESSAGE = "its answer can't be decoded"
"""gRPC logs an answer that can't be decoded, and returns None."""
_NOT_AN_ANSWER = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


class ProbeError(Exception):
    """A probe failed. Its text is the reason, in one line.

    answered: the server itself answered with an error; otherwise it is not reachable (yet). timed_out: the time was
    over. busy: the server's queue is full.
    """

    def __init__(self, reason: str, *, answered: bool = False, timed_out: bool = False, busy: bool = False) -> None:
        super().__init__(reason)
        self.answered = answered
        self.timed_out = timed_out
        self.busy = busy


@dataclass(frozen=True)
class Described:
    """replicas: embedders of the server; 1 if it does not answer. max_length: tokens of the longest text, if known.
    adapters: their digests, by name."""

    replicas: int = 1
    max_length: int | None = None
    adapters: Mapping[str, str] = field(default_factory=dict)


class Probe(Protocol):
    """The part of a server that health checks use."""

    async def vectors(self, timeout: float) -> Vectors:
        """The vectors of the fixed sentences, within `timeout` seconds. Raises ProbeError."""

    async def space(self, timeout: float) -> str:
        """The embedding space of the server's vectors; empty if it does not report it. Raises ProbeError."""

    async def quality(self, space: str, timeout: float) -> float | None:
        """What int8 keeps of rankings (QUALITY); None if it is not in int8 or does not report it. Raises ProbeError.

        space: the server's.
        """

    async def described(self, timeout: float) -> "Described":
        """From the server's configuration."""

    async def close(self) -> None:
        """Close the connection."""


class GrpcProbe:
    """A probe over its own connection, so that a worker's full queue does not look like a sick server."""

    def __init__(
        self, address: str, tls: Callable[[], ClientTls] = ClientTls, model: ServedModel = FIRST_MODEL
    ) -> None:
        """tls: returns the current certificates for grpcs://; after a change, the next check opens a new connection.

        model: the one to check.
        """
        self._address = address
        self._model = model
        # Logits distinguish models; a sigmoid can flatten them.
        self._parameters = {"activation": "none"} if model.task == "score" else _NONE
        self._tls = tls
        self._connect()

    def _connect(self) -> None:
        self._used = self._tls()
        self._channel = open_channel(self._address, self._used, _OPTIONS)
        self._infer = self._channel.unary_unary(
            f"{_SERVICE}/ModelInfer", None, response_deserializer=service_pb2.ModelInferResponse.FromString
        )
        self._ready = self._channel.unary_unary(
            f"{_SERVICE}/ModelReady", None, response_deserializer=service_pb2.ModelReadyResponse.FromString
        )
        self._config = self._channel.unary_unary(
            f"{_SERVICE}/ModelConfig", None, response_deserializer=service_pb2.ModelConfigResponse.FromString
        )

    async def vectors(self, timeout: float) -> Vectors:
        """The vectors of the fixed sentences, within `timeout` seconds. Raises ProbeError."""
        content = await self._embed(SENTENCES, timeout)
        if await self._has_no_dense(content, len(SENTENCES), timeout):
            return np.empty((len(SENTENCES), 0), OUTPUT_TYPES["float"].dtype)
        return _vectors(content, self._model)

    async def infers(self, timeout: float) -> None:
        """Check that the server embeds a sentence within `timeout` seconds. Raises ProbeError."""
        content = await self._embed(SENTENCES[:1], timeout)
        if len(content) < _LEAST[self._model.task] and not await self._has_no_dense(content, 1, timeout):
            raise ProbeError(f"it answered without its {self._model.output}", answered=True)

    async def space(self, timeout: float) -> str:
        """The embedding space of the server's vectors; empty if it does not report it. Raises ProbeError."""
        content = await self._of_the_model(SPACE, timeout)
        if content is None:
            return ""
        try:
            [found] = unframe(content)
        except (FramingError, ValueError):
            found = b""
        space = found.decode(errors="replace")
        if not is_space(space):
            raise ProbeError("its embedding space is not a name", answered=True)
        return space

    async def quality(self, space: str, timeout: float) -> float | None:
        """What int8 keeps of rankings (QUALITY); None if it is not in int8 or does not report it. Raises ProbeError.

        space: the server's.
        """
        content = await self._of_the_model(QUALITY, timeout) if has_quality(space) else None
        if content is None:
            return None
        found = float(np.frombuffer(content, "<f8")[0]) if len(content) == _DOUBLE else math.nan
        if not is_quality(found):
            raise ProbeError("what its quantization keeps is not a number from 0 to 1", answered=True)
        return found

    async def _of_the_model(self, output: str, timeout: float) -> bytes | None:
        """The content of an output that needs no forward pass; None if the server lacks it. Raises ProbeError."""
        request = _infer_request(self._model.embedder, {"token_ids": [_ANY_TOKEN]}, output, timeout)
        try:
            answer = await self._infer(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            if error.code() in _LACKS_OUTPUT or is_about_models(error.details()):
                return None
            raise _refusal(error.code(), _one_line(error.details()), timeout) from None
        return _content_of(answer, output)

    async def _embed(self, sentences: Sequence[str], timeout: float) -> bytes:
        texts = [sentence.encode() for sentence in sentences]
        if self._used != self._tls():
            await self._channel.close(None)
            self._connect()
        try:
            inputs = {"text": texts}
            if self._model.task == "score":
                inputs["query"] = [QUERY.encode()] * len(texts)
            request = _infer_request(self._model.name, inputs, self._model.output, timeout, self._parameters)
            answer = await self._infer(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                # A network device may have dropped the connection silently. Then not even an error would arrive.
                await self._channel.close(None)
                self._connect()
            raise _refusal(error.code(), _one_line(error.details()), timeout) from None
        return _content_of(answer, self._model.output)

    async def _has_no_dense(self, content: bytes, count: int, timeout: float) -> bool:
        """Whether the vectors are empty because the model has other outputs: weights or vectors of tokens.

        content: of `count` vectors. Raises ProbeError.
        """
        if content != bytes(HEADER * count):
            return False
        request = _model_request(service_pb2.ModelConfigRequest, self._model.name)
        try:
            answer = await self._config(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise _refusal(error.code(), _one_line(error.details()), timeout) from None
        return answer is not None and any(output.name in (SPARSE, MULTI_VECTOR) for output in answer.config.output)

    async def described(self, timeout: float) -> Described:
        """From the server's configuration."""
        request = _model_request(service_pb2.ModelConfigRequest, self._model.embedder)
        try:
            answer = await self._config(request, timeout=timeout)
        except grpc.aio.AioRpcError:
            return Described()
        if answer is None:
            return Described()
        length = answer.config.parameters[LENGTH_PARAMETER].string_value
        # `render` writes neither leading zeros nor huge numbers.
        known = length.isascii() and length.isdigit() and len(length) < _MOST_DIGITS
        adapters = read_digests(answer.config.parameters[ADAPTERS_PARAMETER].string_value)
        return Described(max(1, _count_instances(answer)), int(length) if known else None, adapters)

    async def instances(self, model: str, timeout: float) -> int | None:
        """The configured number of a model's instances; None if the model is not loaded. Raises ProbeError."""
        try:
            ready = await self._ready(_model_request(service_pb2.ModelReadyRequest, model), timeout=timeout)
            if ready is not None and not ready.ready:
                return None
            answer = await self._config(_model_request(service_pb2.ModelConfigRequest, model), timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise _refusal(error.code(), _one_line(error.details()), timeout) from None
        if ready is None or answer is None:
            raise ProbeError(_NO_MESSAGE, answered=True)
        return _count_instances(answer)

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close(None)


def _model_request(kind: Any, model: str) -> bytes:
    encoded: bytes = kind(name=model).SerializeToString()
    return encoded


def _count_instances(answer: Any) -> int:
    return sum(int(group.count) * max(len(group.gpus), 1) for group in answer.config.instance_group)


def _content_of(answer: Any, name: str) -> bytes:
    """The raw content of an output. Raises ProbeError."""
    if answer is None:
        raise ProbeError(_NO_MESSAGE, answered=True)
    for output, content in zip(answer.outputs, answer.raw_output_contents, strict=False):
        if output.name == name:
            return bytes(content)
    raise ProbeError(f"it answered without an {name.replace('_', ' ')}", answered=True)


def _infer_request(
    model: str, inputs: dict[str, list[bytes]], output: str, timeout: float, parameters: Mapping[str, str] = _NONE
) -> bytes:
    """inputs: BYTES tensors [elements, 1]."""
    request = service_pb2.ModelInferRequest(model_name=model, id=HEALTH_CHECK_ID)
    for tensor, elements in inputs.items():
        request.inputs.add(name=tensor, datatype="BYTES", shape=[len(elements), 1])
        request.raw_input_contents.append(frame(elements))
    request.outputs.add(name=output)
    for name, value in parameters.items():
        request.parameters[name].string_param = value
    # A cached vector would hide that the server can't compute any more.
    request.parameters["cache"].bool_param = False
    request.parameters["timeout"].int64_param = round(timeout * _MICROSECONDS)
    request.parameters["priority"].uint64_param = _FIRST
    encoded: bytes = request.SerializeToString()
    return encoded


def _refusal(code: grpc.StatusCode, details: str, timeout: float) -> ProbeError:
    if code is grpc.StatusCode.DEADLINE_EXCEEDED or any(words in details for words in _EXPIRED):
        return ProbeError(f"no answer within {timeout:g} s", timed_out=True)
    if (reason := tls_reason(details)) is not None:
        return ProbeError(reason)
    if code is grpc.StatusCode.UNAVAILABLE and details.startswith(_NO_CONNECTION):
        return ProbeError(_reason_of(details))
    return ProbeError(details or code.name, answered=code not in _NOT_AN_ANSWER, busy=_FULL in details)


def _reason_of(details: str) -> str:
    if any(words in details for words in _NOBODY):
        return "nothing listens there"
    if any(words in details for words in _SLOWLY):
        return "connecting took too long: its network or its machine is slow, or another program listens there"
    return f"no connection: {details.rpartition(': ')[2]}"


def _vectors(content: bytes, model: ServedModel) -> Vectors:
    """The vectors of an answer. A model that scores has one, of all logits: a single number has no direction."""
    try:
        if model.task == "score":
            return np.frombuffer(content, "<f4").reshape(1, -1)
        return unframe_vectors(content, len(SENTENCES), OUTPUT_TYPES["float"].dtype).copy()
    except Exception:
        raise ProbeError("its answer does not have a vector for each sentence", answered=True) from None


def _one_line(text: str | None) -> str:
    return text.splitlines()[0][:300] if text else ""
