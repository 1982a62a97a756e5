"""Converts HTTP bodies to encoded ModelInferRequests: small ones here, large ones in a separate process.

Parsing JSON holds Python's lock, so a large body would block all other requests. The worker sends a line of JSON and
the body over a socket to the process, and receives a line of JSON. The messages are in a file in memory, which the
worker reads without holding that lock. The process ends when the socket is closed.
"""

import asyncio
import contextlib
import gc
import json
import os
import resource
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import grpc

from tritonembed_manager.router.apis.http.errors import LONE_SURROGATE, BadRequest
from tritonembed_manager.router.interfaces import DispatchError


@dataclass(frozen=True)
class Converted:
    """info: JSON; its fields depend on the kind of conversion. messages: encoded ModelInferRequests."""

    info: dict[str, Any]
    messages: list[bytes]


Conversions = Mapping[str, Callable[..., Converted]]
"""Conversions by kind. Each receives the body, and arguments that JSON can hold.

It raises BadRequest, and UnicodeEncodeError as `convert`.
"""

_MAX_MEMORY = 768 * 1024 * 1024
"""Bytes, in addition to those that the process has when it starts."""
_NICER = 10
_TOO_MUCH = "the body takes too much memory to be read"


def convert_for_another(conversions: Conversions, fd: int, file: int, max_memory: int = _MAX_MEMORY) -> None:
    """Run the separate process: answer on the socket `fd` until its other end closes. file: receives the messages."""
    os.nice(_NICER)
    # JSON has no cycles, and the search for them among millions of lists would take most of the time.
    gc.disable()
    limit = _data_bytes() + max_memory
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    # The worker may die while it waits; then no process reads the answer.
    with (
        contextlib.suppress(BrokenPipeError, ConnectionResetError),
        socket.socket(fileno=fd) as ours,
        ours.makefile("rb") as reading,
        ours.makefile("wb") as writing,
    ):
        while line := reading.readline():
            _answer(conversions, json.loads(line), reading, writing, file)
            writing.flush()


def _answer(conversions: Conversions, asked: dict[str, Any], reading: BinaryIO, writing: BinaryIO, file: int) -> None:
    head: dict[str, Any]
    messages: list[bytes] = []
    try:
        done = conversions[asked["kind"]](reading.read(asked["size"]), **asked["arguments"])
        head, messages = {"info": done.info}, done.messages
    except BadRequest as error:
        reason = {"message": error.message, "parameter": error.parameter, "status": error.status, "code": error.code}
        head = {"bad": reason}
    except UnicodeEncodeError:
        head = {"surrogate": True}
    except MemoryError:
        head = {"bad": {"message": _TOO_MUCH, "status": 413}}
    except Exception as error:
        head = {"bug": type(error).__name__}
    head["sizes"] = [len(message) for message in messages]
    head["resident"] = _resident()
    os.lseek(file, 0, os.SEEK_SET)
    for message in messages:
        _write(file, message)
    writing.write(json.dumps(head).encode() + b"\n")


def _write(file: int, message: bytes) -> None:
    left = memoryview(message)
    while left:
        left = left[os.write(file, left) :]


def _data_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("/proc has the memory of every process")


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


LARGE_JSON = 256 * 1024
LARGE_BINARY = 4 * 1024 * 1024
"""Bytes up to which a body is converted here without a noticeable delay."""
_TIMEOUT_S = 30.0
_KEPT_BYTES = 256 * 1024 * 1024
"""A process that holds more memory than this after a conversion is ended."""
_LINE_BYTES = 16 * 1024 * 1024
_CODE = grpc.StatusCode


class Converter:
    """conversions: by kind. command: of the separate process; socket and file numbers are appended.

    timeout: seconds per body, including the wait for others.
    """

    def __init__(self, conversions: Conversions, command: Sequence[str], timeout: float = _TIMEOUT_S) -> None:
        self._conversions = conversions
        self._timeout = timeout
        self._command = command
        self._turn = asyncio.Lock()
        self._process: _Process | None = None

    async def convert(
        self, kind: str, chunks: list[bytes], *, json_size: int | None = None, **arguments: Any
    ) -> Converted:
        """chunks: the body; the list is emptied. json_size: bytes of the body that are JSON; None: all.

        Raises BadRequest and DispatchError, and UnicodeEncodeError for a lone surrogate.
        """
        size = sum(map(len, chunks))
        if (size if json_size is None else json_size) <= LARGE_JSON and size <= LARGE_BINARY:
            body = b"".join(chunks)
            chunks.clear()
            return self._conversions[kind](body, **arguments)
        try:
            return await asyncio.wait_for(self._elsewhere(kind, chunks, size, arguments), self._timeout)
        except asyncio.TimeoutError:
            message = f"overloaded: a large body was not read within {self._timeout:g} s; try again"
            raise DispatchError(_CODE.RESOURCE_EXHAUSTED, message, 1.0) from None

    async def close(self) -> None:
        """End the process."""
        if self._process is not None:
            process, self._process = self._process, None
            await process.end()

    async def _elsewhere(self, kind: str, chunks: list[bytes], size: int, arguments: dict[str, Any]) -> Converted:
        async with self._turn:
            process = self._process
            if process is None or process.ended:
                process = self._process = await _Process.start(self._command)
            is_done = False
            try:
                head, messages = await process.ask({"kind": kind, "size": size, "arguments": arguments}, chunks)
                is_done = head["resident"] <= _KEPT_BYTES
            except (ConnectionError, asyncio.IncompleteReadError):
                raise DispatchError(_CODE.INTERNAL, "the process that reads large bodies ended") from None
            finally:
                # The process is killed even in the middle of its work: no request waits for the result any more.
                if not is_done:
                    self._process = None
                    process.kill()
        if "bad" in head:
            raise BadRequest(**head["bad"])
        if "surrogate" in head:
            raise BadRequest(LONE_SURROGATE)
        if "bug" in head:
            raise DispatchError(_CODE.INTERNAL, "internal error of the manager")
        return Converted(head["info"], messages)


class _Process:
    def __init__(self, process: "subprocess.Popen[bytes]", ours: socket.socket, file: int) -> None:
        self._file = file
        self._process = process
        self._ours = ours
        self._loop = asyncio.get_running_loop()
        self._buffer = b""

    @classmethod
    async def start(cls, command: Sequence[str]) -> "_Process":
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        file = os.memfd_create("large-bodies")
        with theirs:
            process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(file)],
                pass_fds=[theirs.fileno(), file],
                # The process needs only one thread.
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
            )
        return cls(process, ours, file)

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    async def ask(self, head: dict[str, Any], chunks: list[bytes]) -> tuple[dict[str, Any], list[bytes]]:
        await self._loop.sock_sendall(self._ours, json.dumps(head).encode() + b"\n")
        chunks.reverse()
        while chunks:
            await self._loop.sock_sendall(self._ours, chunks.pop())
        answer = json.loads(await self._line())
        messages, at = [], 0
        for size in answer["sizes"]:
            messages.append(await asyncio.to_thread(_pread, os.dup(self._file), size, at))
            at += size
        os.ftruncate(self._file, 0)
        return answer, messages

    def kill(self) -> None:
        self._close()
        self._loop.run_in_executor(None, self._process.wait)

    async def end(self) -> None:
        self._close()
        await asyncio.to_thread(self._process.wait)

    def _close(self) -> None:
        self._process.kill()
        self._ours.close()
        # A read in progress has its own descriptor.
        os.close(self._file)

    async def _line(self) -> bytes:
        while b"\n" not in self._buffer:
            more = await self._loop.sock_recv(self._ours, 65536)
            if not more or len(self._buffer) > _LINE_BYTES:
                raise ConnectionError("no answer")
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


def _pread(file: int, size: int, at: int) -> bytes:
    """Read part of a file and close its descriptor. Raises ConnectionError if bytes are missing."""
    try:
        found = os.pread(file, size, at)
    finally:
        os.close(file)
    if len(found) != size:
        raise ConnectionError("the messages were cut")
    return found
