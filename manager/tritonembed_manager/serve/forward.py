"""The way to one Triton server: a few gRPC channels that carry bytes."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import grpc.aio

SERVICE = "inference.GRPCInferenceService"
CHANNELS = 2
"""Connections a server: one alone would put every answer through one window and one lock."""
Metadata = Sequence[tuple[str, str | bytes]]
Call = Any
"""A grpc.aio.UnaryUnaryCall[bytes, bytes]."""

OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Without it all channels of a process to one address share one connection, and its state after a failure.
    ("grpc.use_local_subchannel_pool", 1),
    # Triton takes more frequent pings on an idle connection for an attack.
    ("grpc.keepalive_time_ms", 300_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Nothing on the way from here to a server is a proxy, whatever the environment says of HTTP.
    ("grpc.enable_http_proxy", 0),
    # The dispatcher knows better where to send a request again.
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
]
_HOP = ("user-agent", "te", "host", "content-type", "accept-encoding", "content-length", "connection")


class Forward:
    """Channels to one address, taken in turn. It belongs to the event loop in which it is made.

    Each `infer` is followed by `done`. `retire` closes the channels once nothing is outstanding.
    """

    def __init__(self, address: str, channels: int = CHANNELS) -> None:
        self._channels = [grpc.aio.insecure_channel(address, OPTIONS) for _ in range(channels)]
        self._infer: list[Callable[..., Call]] = [
            channel.unary_unary(f"/{SERVICE}/ModelInfer", None, None) for channel in self._channels
        ]
        self._turn = 0
        self._outstanding = 0
        self._retired = False
        self._closing: asyncio.Task[None] | None = None

    def infer(self, message: bytes, timeout: float, metadata: Metadata | None) -> Call:
        """Start a ModelInfer; the call is awaited for its bytes, or cancelled."""
        self._turn = turn = (self._turn + 1) % len(self._infer)
        call = self._infer[turn](message, timeout=timeout, metadata=metadata)
        self._outstanding += 1
        return call

    async def call(self, method: str, message: bytes, timeout: float) -> bytes:
        """Any other unary method. Raises grpc.aio.AioRpcError."""
        self._outstanding += 1
        try:
            answer = await self._channels[0].unary_unary(f"/{SERVICE}/{method}", None, None)(message, timeout=timeout)
            return bytes(answer)
        finally:
            self.done()

    def done(self) -> None:
        """A ModelInfer has ended, one way or another."""
        self._outstanding -= 1
        if self._retired:
            self.retire()

    def retire(self) -> None:
        """Nothing new is sent here: close when what is outstanding has ended."""
        self._retired = True
        if not self._outstanding and self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())

    async def closed(self) -> None:
        """After `retire`, with nothing outstanding: wait for the end."""
        if self._closing is not None:
            await self._closing

    async def _close(self) -> None:
        for channel in self._channels:
            await channel.close(None)


def forwarded(metadata: Metadata) -> Metadata | None:
    """What of a caller's metadata goes on to Triton: all but what belongs to the connection it came on."""
    kept = [pair for pair in metadata if pair[0] not in _HOP and not pair[0].startswith(("grpc-", ":"))]
    return kept or None
