"""A TCP proxy, in a thread of its own, that behaves like a bad network.

with bad_network("127.0.0.1:8001") as network:
    network.delay_s = 0.2
    connect(network.address)
"""

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_CHUNK = 4096


class BadNetwork:
    """Switches can be set at any time and hold for later bytes. Answers are the bytes that come from the server."""

    def __init__(self, behind: str) -> None:
        self.delay_s = 0.0
        """Seconds by which each piece is delayed, in both directions."""
        self.bytes_per_s: float | None = None
        """Rate of answers; None: no limit."""
        self.corrupt: bool = False
        """Flip one bit in every other piece of answers."""
        self.reset_answers_after: int | None = None
        """Reset a connection after this many bytes of answers, in the middle of a message."""
        self.vanishes = False
        """Accept connections but forward nothing, as if a machine had lost its power."""
        self.connections = 0
        """Number of connections opened so far."""
        self.reset_count = 0
        self.port = 0
        self._behind = behind.rpartition(":")
        self._open: set[asyncio.StreamWriter] = set()
        self._vanished: set[asyncio.StreamWriter] = set()
        self._over = asyncio.Event()
        self._chance = random.Random(1)

    @property
    def address(self) -> str:
        """host:port."""
        return f"127.0.0.1:{self.port}"

    def vanish_open_ones(self) -> None:
        """Silently forward nothing on connections that are open now, as if a router had forgotten them."""
        self._vanished |= set(self._open)

    async def listen(self) -> asyncio.Server:
        """Listen on a free port."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    def end(self) -> None:
        """Close all connections, including vanished ones."""
        self._over.set()
        for writer in self._open:
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        try:
            back_reader, back_writer = await asyncio.open_connection(self._behind[0], int(self._behind[2]))
        except OSError:
            _reset(writer)
            return
        try:
            await asyncio.gather(
                self._pump(reader, back_writer, writer, of_answers=False),
                self._pump(back_reader, writer, writer, of_answers=True),
            )
        finally:
            self._open.discard(writer)
            for each in (writer, back_writer):
                each.transport.abort()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        to: asyncio.StreamWriter,
        client: asyncio.StreamWriter,
        *,
        of_answers: bool,
    ) -> None:
        passed = pieces = 0
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                if self.vanishes or client in self._vanished:
                    # The FIN of a vanished connection is not forwarded either.
                    await self._over.wait()
                    return
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if of_answers and self.bytes_per_s is not None:
                    await asyncio.sleep(len(data) / self.bytes_per_s)
                pieces += 1
                if of_answers and self.corrupt and pieces % 2 == 0:
                    at = self._chance.randrange(len(data))
                    data = data[:at] + bytes((data[at] ^ 0x10,)) + data[at + 1 :]
                if of_answers and self.reset_answers_after is not None:
                    data = data[: max(0, self.reset_answers_after - passed)]
                    if not data:
                        self.reset_count += 1
                        _reset(to)
                        return
                passed += len(data)
                to.write(data)
                await to.drain()
        with suppress(OSError):
            to.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextmanager
def bad_network(behind: str) -> Iterator[BadNetwork]:
    """A bad network in front of the server. behind: its host:port."""
    network = BadNetwork(behind)
    listening, over = threading.Event(), threading.Event()

    async def run() -> None:
        server = await network.listen()
        listening.set()
        await asyncio.to_thread(over.wait)
        server.close()
        network.end()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    listening.wait()
    try:
        yield network
    finally:
        over.set()
        thread.join()
