"""Asks a Triton server for the vectors of fixed sentences: what tells that it is well, and that it is the right one."""

from typing import Protocol

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2

from tritonembed._wire import VECTOR_DTYPES, frame, unframe_vectors
from tritonembed_manager.serve.control.fingerprint import SENTENCES, Vectors

_SERVICE = "/inference.GRPCInferenceService"
_MICROSECONDS = 1_000_000
_MODEL = "embedding"
_REPLICATED_MODEL = "embedder"
_OPTIONS = (
    # A server that was just restarted must not wait for gRPC's own patience, which grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # Channels of one process to one address share a connection otherwise, and its backoff.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)
# Triton's and the engine's words for a request whose time was over, and Triton's for one that it did not take.
_EXPIRED = ("timeout expired", "deadline passed")
_FULL = "maximum queue size"
_FIRST = 1
"""KServe's priority of a check: ahead of what waits, where Triton's queues know priorities."""
# gRPC's.
_NO_CONNECTION = "failed to connect"
_NOT_AN_ANSWER = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


class ProbeError(Exception):
    """No vectors, and why in one line.

    answered: the server itself said so, rather than not being there (yet). busy: it said that its queue is full.
    """

    def __init__(self, why: str, *, answered: bool = False, timed_out: bool = False, busy: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.answered = answered
        self.timed_out = timed_out
        self.busy = busy


class Probe(Protocol):
    """What health checks need of a server."""

    async def vectors(self, timeout: float) -> Vectors:
        """Of the fixed sentences, within `timeout` seconds. Raises ProbeError."""

    async def replicas(self, timeout: float) -> int:
        """How many embedders it runs; 1 if it does not tell."""

    async def close(self) -> None:
        """Give the connection back."""


class GrpcProbe:
    """Over a connection of its own, so that a full queue in a worker does not look like a sick server."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._infer = self._channel.unary_unary(
            f"{_SERVICE}/ModelInfer", None, response_deserializer=service_pb2.ModelInferResponse.FromString
        )
        self._config = self._channel.unary_unary(
            f"{_SERVICE}/ModelConfig", None, response_deserializer=service_pb2.ModelConfigResponse.FromString
        )

    async def vectors(self, timeout: float) -> Vectors:
        """Of the fixed sentences, within `timeout` seconds. Raises ProbeError."""
        try:
            answer = await self._infer(_infer_request(timeout), timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise _refusal(error.code(), _one_line(error.details()), timeout) from None
        for output, content in zip(answer.outputs, answer.raw_output_contents, strict=False):
            if output.name == "embedding":
                return _vectors(content)
        raise ProbeError("it answered without an embedding", answered=True)

    async def replicas(self, timeout: float) -> int:
        """How many embedders it runs; 1 if it does not tell."""
        request = service_pb2.ModelConfigRequest(name=_REPLICATED_MODEL).SerializeToString()
        try:
            answer = await self._config(request, timeout=timeout)
        except grpc.aio.AioRpcError:
            return 1
        counts = [int(group.count) * max(len(group.gpus), 1) for group in answer.config.instance_group]
        return max(1, sum(counts))

    async def close(self) -> None:
        """Give the connection back."""
        await self._channel.close(None)


def _infer_request(timeout: float) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=_MODEL)
    request.inputs.add(name="text", datatype="BYTES", shape=[len(SENTENCES), 1])
    request.outputs.add(name="embedding")
    request.parameters["timeout"].int64_param = round(timeout * _MICROSECONDS)
    request.parameters["priority"].uint64_param = _FIRST
    request.raw_input_contents.append(frame([sentence.encode() for sentence in SENTENCES]))
    encoded: bytes = request.SerializeToString()
    return encoded


def _refusal(code: grpc.StatusCode, details: str, timeout: float) -> ProbeError:
    if code is grpc.StatusCode.DEADLINE_EXCEEDED or any(words in details for words in _EXPIRED):
        return ProbeError(f"no answer within {timeout:g} s", timed_out=True)
    if code is grpc.StatusCode.UNAVAILABLE and details.startswith(_NO_CONNECTION):
        return ProbeError("nothing listens there")
    return ProbeError(details or code.name, answered=code not in _NOT_AN_ANSWER, busy=_FULL in details)


def _vectors(content: bytes) -> Vectors:
    try:
        return unframe_vectors(content, len(SENTENCES), VECTOR_DTYPES["float"]).copy()
    except Exception:
        raise ProbeError("what it answered is not a vector for each sentence", answered=True) from None


def _one_line(text: str | None) -> str:
    return text.splitlines()[0][:300] if text else ""
