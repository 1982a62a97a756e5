"""Where attached servers are listed: the command line, a file that is watched, a name in DNS."""

import asyncio
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tritonembed_manager.errors import StartError

_FORM = re.compile(r"^(?P<host>\[[0-9a-fA-F:.%]+\]|[^\s:/\[\]]+):(?P<port>\d+)(/(?P<http>\d+)(/(?P<metrics>\d+))?)?$")
_TRITON_PORTS = (8001, 8000, 8002)
"""What a tritonserver listens on when nothing else was said: gRPC, HTTP, metrics."""


@dataclass(frozen=True)
class Address:
    """A running server: host:port of gRPC, and of HTTP and metrics where they are known."""

    grpc: str
    http: str | None = None
    metrics: str | None = None


def parse_address(text: str) -> Address:
    """`host:port`, or `host:port/http_port/metrics_port`; port 8001 implies 8000 and 8002. Raises ValueError."""
    found = _FORM.match(text.strip())
    ports = [int(port) for port in found.group("port", "http", "metrics") if port] if found else []
    if found is None or not all(0 < port < 65536 for port in ports):
        raise ValueError(f"{text.strip()!r} is not host:port or host:port/http_port/metrics_port")
    if ports == [_TRITON_PORTS[0]]:
        ports = list(_TRITON_PORTS)
    return Address(*(f"{found['host']}:{port}" for port in ports))


def parse_servers(texts: Iterable[str], option: str) -> list[Address]:
    """The addresses given with an option, each once. Raises StartError that names the option."""
    try:
        return list(dict.fromkeys(parse_address(text) for text in texts))
    except ValueError as error:
        raise StartError(f"{option}: {error}") from None


class ServersFile:
    """One address a line; blank lines and what follows a # don't count."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[Address]:
        """What it says now. Raises ValueError, in one line, for a file that can't be read, is wrong or empty."""
        try:
            # Editors on Windows begin UTF-8 with a byte order mark.
            lines = self._path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not text"
            raise ValueError(f"--servers-file {self._path.name} cannot be read: {reason}") from None
        texts = [text for line in lines if (text := line.partition("#")[0].strip())]
        try:
            found = list(dict.fromkeys(parse_address(text) for text in texts))
        except ValueError as error:
            raise ValueError(f"--servers-file {self._path.name}: {error}") from None
        if not found:
            raise ValueError(f"--servers-file {self._path.name} names no server")
        return found


class ServersDns:
    """Every address behind a name."""

    def __init__(self, name: str) -> None:
        self._target = parse_address(name)
        self._host, _, _ = self._target.grpc.rpartition(":")

    async def read(self) -> list[Address]:
        """What it resolves to now. Raises ValueError, in one line, when it does not."""
        host = self._host.strip("[]")
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError as error:
            raise ValueError(f"--servers-dns {self._host} does not resolve: {error.strerror}") from None
        hosts = sorted({str(entry[4][0]) for entry in found})
        return [self._at(f"[{host}]" if ":" in host else host) for host in hosts]

    def _at(self, host: str) -> Address:
        target = self._target
        ports = (text and f"{host}:{text.rpartition(':')[2]}" for text in (target.grpc, target.http, target.metrics))
        grpc, http, metrics = ports
        return Address(grpc or "", http, metrics)
