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
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import grpc
from tritonclient.grpc import service_pb2

from tritonembed_manager.router.apis.http.bodies import parse_object
from tritonembed_manager.router.apis.http.cohere_request import read_request as read_cohere
from tritonembed_manager.router.apis.http.errors import LONE_SURROGATE, BadRequest
from tritonembed_manager.router.apis.http.kserve_json import InferRequest, read_raw
from tritonembed_manager.router.apis.http.kserve_json import read_request as read_infer
from tritonembed_manager.router.apis.http.openai_request import read_request as read_openai
from tritonembed_manager.router.apis.http.score_requests import READERS, prepare_scores
from tritonembed_manager.router.apis.http.tei_request import Task
from tritonembed_manager.router.apis.http.tei_request import read_request as read_tei
from tritonembed_manager.router.apis.http.tei_tokens_request import read_decode, read_tokenize
from tritonembed_manager.router.apis.http.vector_requests import Prepared, VectorsRequest, prepare
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.interfaces import DispatchError
from tritonembed_protocol.served import ServedModel


@dataclass(frozen=True)
class Converted:
    """info: JSON; its fields depend on the kind of conversion. messages: encoded ModelInferRequests."""

    info: dict[str, Any]
    messages: list[bytes]


def _openai(body: bytes, names: dict[str, Any]) -> Converted:
    """info: as_base64, and the options that decide how answers are read; see `_of_vectors`."""
    asked = read_openai(parse_object(body), ServedNames.from_json(names))
    options = {"embedding_type": asked.options["embedding_type"]}
    return _of_vectors(asked, as_base64=asked.as_base64, options=options)


def _tei(body: bytes, names: dict[str, Any], task: Task | None) -> Converted:
    """info: the task, and the options that decide how answers are read; see `_of_vectors`."""
    asked = read_tei(parse_object(body), task, ServedNames.from_json(names).served)
    options = {"outputs": asked.options["outputs"]} if "outputs" in asked.options else {}
    return _of_vectors(asked, task=asked.task, options=options)


def _tei_tokenize(body: bytes, names: dict[str, Any]) -> Converted:
    """info: see `_of_tokenizer`."""
    return _of_tokenizer(*read_tokenize(parse_object(body), ServedNames.from_json(names).served))


def _tei_decode(body: bytes, names: dict[str, Any]) -> Converted:
    """info: see `_of_tokenizer`."""
    return _of_tokenizer(*read_decode(parse_object(body), ServedNames.from_json(names).served))


def _score(kind: str) -> Callable[..., Converted]:
    """A conversion of score_requests.py."""

    def convert(body: bytes, names: dict[str, Any], **arguments: Any) -> Converted:
        """info: the number of rows per message (counts), the Triton model, and what the answer needs (info)."""
        asked = READERS[kind](parse_object(body), ServedNames.from_json(names), **arguments)
        requests = list(prepare_scores(asked))
        served = asked.model.served
        info = {
            "counts": [request.count for request in requests],
            "model": served.classify if asked.queries is None else served.name,
            "info": asked.info,
        }
        return Converted(info, [request.message for request in requests])

    return convert


def _of_tokenizer(output: str, requests: list[Prepared]) -> Converted:
    """info: the output that the requests ask for, and the number of elements per message (counts)."""
    counts = [request.count for request in requests]
    return Converted({"output": output, "counts": counts}, [request.message for request in requests])


def _cohere(body: bytes, names: dict[str, Any], version: int) -> Converted:
    """info: embedding_types; see `_of_vectors`."""
    asked = read_cohere(parse_object(body), ServedNames.from_json(names), version)
    return _of_vectors(asked, embedding_types=asked.embedding_types)


def _of_vectors(asked: VectorsRequest, **info: Any) -> Converted:
    """info: also the number of sentences per message (counts), whether they are token ids (by_ids), and the model."""
    requests = list(prepare(asked))
    counts = [request.count for request in requests]
    return Converted(
        {**info, "counts": counts, "by_ids": asked.by_ids, "model": asked.model.name},
        [request.message for request in requests],
    )


def _kserve(
    body: bytes, header_length: int | None, model: str, version: str, served: dict[str, Any], of_litellm: bool = False
) -> Converted:
    """info: which outputs are binary, and which are numbers; see InferRequest."""
    return _of(read_infer(body, header_length, model, version, of_litellm, ServedModel(**served)))


def _raw(body: bytes, metadata: str, version: str) -> Converted:
    """metadata: the model's encoded ModelMetadataResponse, in hexadecimal. info: as for `_kserve`."""
    return _of(read_raw(body, service_pb2.ModelMetadataResponse.FromString(bytes.fromhex(metadata)), version))


def _of(request: InferRequest) -> Converted:
    info = {
        "binary": request.binary,
        "binary_by_default": request.binary_by_default,
        "numbers": asdict(request.numbers),
    }
    return Converted(info, [request.message.SerializeToString()])


_CONVERSIONS: dict[str, Callable[..., Converted]] = {
    "openai": _openai,
    "tei": _tei,
    "tei_tokenize": _tei_tokenize,
    "tei_decode": _tei_decode,
    "cohere": _cohere,
    "kserve": _kserve,
    "raw": _raw,
    **{kind: _score(kind) for kind in READERS},
}

_MAX_MEMORY = 768 * 1024 * 1024
"""Bytes, in addition to those that the process has when it starts."""
COMMAND: tuple[str, ...] = (
    sys.executable,
    "-c",
    # Nothing is imported from the current folder.
    "import sys; sys.path[:] = [path for path in sys.path if path]; "
    f"from {__name__} import main; main(*map(int, sys.argv[1:]))",
)
_NICER = 10
_TOO_MUCH = "the body takes too much memory to be read"


def main(fd: int, file: int, max_memory: int = _MAX_MEMORY) -> None:
    """Be the separate process: answer on the socket `fd` until its other end is closed. file: receives the messages."""
    os.nice(_NICER)
    # JSON has no cycles, and the search for them among millions of lists would take most of the time.
    gc.disable()
    limit = _data_bytes() + max_memory
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    # The worker may die while it waits: then there is nobody to answer.
    with (
        contextlib.suppress(BrokenPipeError, ConnectionResetError),
        socket.socket(fileno=fd) as ours,
        ours.makefile("rb") as reading,
        ours.makefile("wb") as writing,
    ):
        while line := reading.readline():
            _answer(json.loads(line), reading, writing, file)
            writing.flush()


def _answer(asked: dict[str, Any], reading: BinaryIO, writing: BinaryIO, file: int) -> None:
    head: dict[str, Any]
    messages: list[bytes] = []
    try:
        done = _CONVERSIONS[asked["kind"]](reading.read(asked["size"]), **asked["arguments"])
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
    raise AssertionError("/proc says how much memory a process has")


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
    """timeout: seconds per body, including the wait for others. command: socket and file numbers are appended."""

    def __init__(self, timeout: float = _TIMEOUT_S, command: Sequence[str] = COMMAND) -> None:
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
            return _CONVERSIONS[kind](body, **arguments)
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
                # Also killed in the middle of its work: nobody waits for the result any more.
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
