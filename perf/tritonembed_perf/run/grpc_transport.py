"""Serialized messages through gRPC for asyncio, which costs the least client CPU that gRPC for Python allows."""

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc

from tritonembed_perf.load import CONNECTION_OPTIONS
from tritonembed_perf.run.wire import RequestFailedError, UnreachableError


class GrpcTransport:
    """Several connections, because one carries only so much. Raw bytes in and out of `method`."""

    def __init__(self, server: str, method: str, connections: int, timeout: float) -> None:
        self._channels = open_channels(server, connections)
        self._calls: list[Any] = [channel.unary_unary(method, None, None) for channel in self._channels]
        self._timeout = timeout

    async def send(self, payload: bytes, number: int) -> bytes:
        """As Transport says."""
        try:
            answer: bytes = await self._calls[number % len(self._calls)](payload, timeout=self._timeout)
        except grpc.aio.AioRpcError as error:
            raise RequestFailedError(error.code().name, error.details() or "") from None
        return answer

    async def close(self) -> None:
        """As Transport says."""
        await asyncio.gather(*(channel.close(None) for channel in self._channels))


def open_channels(server: str, count: int) -> Sequence[grpc.aio.Channel]:
    """Channels that share no connection."""
    return [grpc.aio.insecure_channel(server, options=CONNECTION_OPTIONS) for _ in range(count)]


async def reach(channel: grpc.aio.Channel, timeout: float) -> None:
    """Wait until the server answers. Raises UnreachableError."""
    try:
        await asyncio.wait_for(channel.channel_ready(), timeout)
    except (asyncio.TimeoutError, grpc.aio.UsageError):
        raise UnreachableError from None
