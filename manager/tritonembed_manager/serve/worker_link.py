"""The worker's end of the socket to its parent: one JSON object a line, both ways (worker_config.py has the list)."""

import asyncio
import json
import socket
from typing import Any

_LINE_BYTES = 64 * 1024 * 1024
_BEHIND_BYTES = 1024 * 1024


class Link:
    """Open it in the event loop that uses it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, fd: int) -> "Link":
        """On a descriptor, which the link owns from here on."""
        ours = socket.socket(fileno=fd)
        ours.setblocking(False)
        return cls(*await asyncio.open_connection(sock=ours, limit=_LINE_BYTES))

    async def hear(self) -> dict[str, Any] | None:
        """The next line; None when the parent has gone."""
        try:
            line = await self._reader.readline()
            return dict(json.loads(line)) if line.endswith(b"\n") else None
        except (ConnectionError, ValueError):
            # What is no JSON was cut off in the middle.
            return None

    def say(self, kind: str, *, may_drop: bool = False, **content: Any) -> None:
        """A line of that type; see `send`."""
        self.send({"type": kind, **content}, may_drop=may_drop)

    def send(self, line: dict[str, Any], *, may_drop: bool = False) -> None:
        """A line, without waiting. may_drop: it is not worth keeping for a parent that does not read."""
        if self._writer.is_closing():
            return
        if may_drop and self._writer.transport.get_write_buffer_size() > _BEHIND_BYTES:
            return
        self._writer.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")

    async def close(self) -> None:
        """Let what was said go out, then hang up."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except ConnectionError:
            return
