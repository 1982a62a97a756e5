"""KServe v2 over gRPC: serialized requests through gRPC for asyncio, with as little client CPU as Python allows."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from tritonembed_manager.server.client_tls import ClientTls, open_channel
from tritonembed_manager.tune.loadgen.load import RequestFailedError
from tritonembed_protocol.framing import frame

ENSEMBLE = "embedding"
METHOD = "/inference.GRPCInferenceService/ModelInfer"
CONNECTION_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Several processes, and several connections in each: otherwise gRPC shares one.
    ("grpc.use_local_subchannel_pool", 1),
]
REQUESTS_PER_CONNECTION = 32
OPEN_LOOP_CONNECTIONS = 8


def encode_request(texts: Sequence[str], model: str = ENSEMBLE, request_id: str = "") -> bytes:
    """Return a serialized ModelInferRequest for these texts."""
    request = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    request.inputs.add(name="text", datatype="BYTES", shape=[len(texts), 1])
    request.raw_input_contents.append(frame([text.encode() for text in texts]))
    serialized: bytes = request.SerializeToString()
    return serialized


@dataclass(frozen=True)
class GrpcSender:
    """Sends raw bytes to `method` of the server at host:port, or over TLS at grpcs://host:port."""

    server: str
    method: str = METHOD
    tls: ClientTls = field(default_factory=ClientTls)
    api_key: str | None = field(default=None, repr=False)

    def connections(self, concurrency: int | None) -> int:
        """As Sender says."""
        return OPEN_LOOP_CONNECTIONS if concurrency is None else -(-concurrency // REQUESTS_PER_CONNECTION)

    def open(self, connections: int, timeout: float) -> "GrpcTransport":
        """As Sender says."""
        return GrpcTransport(self.server, self.method, connections, timeout, self.tls, self.api_key)


class GrpcTransport:
    """Several connections, because one carries only so much."""

    def __init__(
        self, server: str, method: str, connections: int, timeout: float, tls: ClientTls, api_key: str | None = None
    ) -> None:
        self._channels = open_channels(server, connections, tls)
        self._calls: list[Any] = [channel.unary_unary(method, None, None) for channel in self._channels]
        self._timeout = timeout
        self._metadata = key_metadata(api_key)

    async def send(self, payload: bytes, number: int) -> bytes:
        """As Transport says."""
        try:
            answer: bytes = await self._calls[number % len(self._calls)](
                payload, timeout=self._timeout, metadata=self._metadata
            )
        except grpc.aio.AioRpcError as error:
            raise RequestFailedError(error.code().name, error.details() or "") from None
        return answer

    async def close(self) -> None:
        """As Transport says."""
        await asyncio.gather(*(channel.close(None) for channel in self._channels))


def key_metadata(api_key: str | None) -> tuple[tuple[str, str], ...]:
    """A tenant's key as gRPC metadata."""
    return (("authorization", f"Bearer {api_key}"),) if api_key else ()


def open_channels(server: str, count: int, tls: ClientTls) -> Sequence[grpc.aio.Channel]:
    """Channels that share no connection."""
    return [open_channel(server, tls, CONNECTION_OPTIONS) for _ in range(count)]
