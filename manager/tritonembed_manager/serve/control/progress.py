"""Whether a server computes, by the engine's counters on its metrics port: a busy server is not a hung one."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Protocol

_COUNTED = re.compile(rb"^tritonembed_(?:tokens|batches)_total(?:\{[^}]*\})? ([0-9.eE+]+)\s*$", re.MULTILINE)
"""What forward passes add to. Not what has been tokenized: the tokens of a check count there, too."""
_MAX_BYTES = 16 * 1024 * 1024
_ANSWER_S = 2.0
LOOK_AGAIN_S = 0.5
"""An engine hands its counters over this often."""
LOOKS = 4

Read = Callable[[str], Awaitable[float | None]]


class Progress(Protocol):
    """What health checks ask about a server that is late."""

    async def mark(self) -> None:
        """Remember how far it is."""

    async def grew(self) -> bool:
        """Whether it has computed anything since the last mark; waits up to two seconds for it."""


class MetricsProgress:
    """address: host:port of the metrics, None if that is not known; nothing is ever seen to grow then."""

    def __init__(
        self,
        address: str | None,
        *,
        read: "Read | None" = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._address = address
        self._read = read or read_counters
        self._sleep = sleep
        self._marked: float | None = None

    async def mark(self) -> None:
        """Remember how far it is."""
        self._marked = await self._counted()

    async def grew(self) -> bool:
        """Whether it has computed anything since the last mark; waits up to two seconds for it."""
        if self._address is None:
            return False
        before = self._marked if self._marked is not None else await self._counted()
        for look in range(LOOKS):
            if look:
                await self._sleep(LOOK_AGAIN_S)
            now = await self._counted()
            if now is None:
                return False
            if before is not None and now != before:
                self._marked = now
                return True
            before = now
        return False

    async def _counted(self) -> float | None:
        return None if self._address is None else await self._read(self._address)


async def read_counters(address: str) -> float | None:
    """The sum of a server's counters of computed work; None if they are not answered within two seconds."""
    try:
        text = await asyncio.wait_for(_get(address), _ANSWER_S)
    except (OSError, asyncio.TimeoutError, asyncio.IncompleteReadError, ValueError):
        return None
    found = [float(value) for value in _COUNTED.findall(text)]
    return sum(found) if found else None


async def _get(address: str) -> bytes:
    """The answer with its headers, which are no metrics. Not with aiohttp: it would double the parent's memory."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    try:
        writer.write(f"GET /metrics HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        read = bytearray()
        while len(read) < _MAX_BYTES and (chunk := await reader.read(65536)):
            read += chunk
        return bytes(read)
    finally:
        writer.close()
