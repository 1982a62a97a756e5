"""Discovery of attached servers: the command line, a watched file and a DNS name list them.

The file and the name are read repeatedly while the manager runs.
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tritonembed_manager.errors import StartError
from tritonembed_manager.router.data.load_table import SLOTS
from tritonembed_manager.router.log import log, warn
from tritonembed_manager.server.files import read_small, settled
from tritonembed_protocol.tls import GRPCS, without_scheme

_FORM = re.compile(
    r"^(?P<scheme>grpcs://([^\s:/@\[\]]+@)?)?(?P<host>\[[0-9a-fA-F:.%]+\]|[^\s:/@\[\]]+):(?P<port>\d+)"
    r"(/(?P<http>\d+)(/(?P<metrics>\d+))?)?$"
)
_TRITON_PORTS = (8001, 8000, 8002)
"""Triton's default ports: gRPC, HTTP, metrics."""
_SHOWN = 60


@dataclass(frozen=True)
class Address:
    """The address of a running server: host:port of gRPC, perhaps after grpcs://, and of HTTP and metrics if known.

    In grpcs://name@host:port, the server's certificate has to be for the name instead of the host.
    """

    grpc: str
    http: str | None = None
    metrics: str | None = None


def parse_address(text: str) -> Address:
    """`host:port`, or `host:port/http_port/metrics_port`, perhaps after grpcs://. Raises ValueError.

    Port 8001 implies 8000 and 8002.
    """
    # Printable only, because the address is the server's name in the log and on the status page.
    found = _FORM.match(text.strip()) if text.strip().isprintable() else None
    ports = [int(port) for port in found.group("port", "http", "metrics") if port] if found else []
    if found is None or not all(0 < port < 65536 for port in ports):
        shown = text.strip()
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
        raise ValueError(f"{shown!r} is not host:port or host:port/http_port/metrics_port")
    if ports == [_TRITON_PORTS[0]]:
        ports = list(_TRITON_PORTS)
    grpc, *others = (f"{found['host']}:{port}" for port in ports)
    return Address(f"{found['scheme'] or ''}{grpc}", *others)


def parse_servers(texts: Iterable[str], option: str) -> list[Address]:
    """The addresses of an option, without duplicates. Raises StartError, which names the option."""
    try:
        return list(dict.fromkeys(parse_address(text) for text in texts))
    except ValueError as error:
        raise StartError(f"{option}: {error}") from None


class ServersFile:
    """A file with one address per line. Blank lines and comments, which begin with #, are ignored."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[Address]:
        """The addresses in the file now. Raises ValueError, in one line, if it can't be read, is wrong or empty."""
        try:
            # Editors on Windows begin UTF-8 with a byte order mark.
            lines = read_small(self._path).decode("utf-8-sig").splitlines()
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


class NoAddressError(ValueError):
    """A DNS name has no address now. It may get addresses later: an orchestrator adds servers once they are ready."""


class ServersDns:
    """The servers at all addresses of a DNS name."""

    def __init__(self, name: str) -> None:
        self._target = parse_address(name)
        target, self._secure = without_scheme(self._target.grpc)
        self._certified, _, target = target.rpartition("@")
        self._host, _, _ = target.rpartition(":")

    async def read(self) -> list[Address]:
        """The addresses of the name now. Raises ValueError, in one line; NoAddressError if there are no addresses."""
        host = self._host.strip("[]")
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError as error:
            raise NoAddressError(f"--servers-dns {self._host} does not resolve: {error.strerror}") from None
        except UnicodeError:
            # Python raises it for invalid names, such as an empty label.
            raise ValueError(f"--servers-dns {self._host} is not a host name") from None
        hosts = sorted({str(entry[4][0]) for entry in found})
        if not hosts:
            raise NoAddressError(f"--servers-dns {self._host} has no address")
        return [self._at(f"[{host}]" if ":" in host else host) for host in hosts]

    def _at(self, host: str) -> Address:
        target = self._target
        ports = (text and f"{host}:{text.rpartition(':')[2]}" for text in (target.grpc, target.http, target.metrics))
        grpc, http, metrics = ports
        # The certificate is for the name that was looked up, not for its addresses.
        name = self._certified or ("" if _is_ip(self._host) else self._host)
        scheme = GRPCS + (f"{name}@" if name else "") if self._secure else ""
        return Address(f"{scheme}{grpc}", http, metrics)


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


DNS_EVERY_S = 5.0


class ServerLists:
    """The servers of the command line, a file and a DNS name. `follow` gets all of them whenever they change.

    If a list can't be read, is empty or is too long, the previous list stays in force, and a warning is logged.
    """

    def __init__(
        self,
        given: Sequence[Address],
        file: ServersFile | None,
        dns: ServersDns | None,
        follow: Callable[[list[Address]], None],
        *,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._given = list(given)
        self._file = file
        self._dns = dns
        self._follow = follow
        self._pause = pause
        self._found: dict[str, list[Address]] = {}
        self._complaints: dict[str, str] = {}

    async def first(self) -> list[Address]:
        """Read all lists. Raises StartError if a list can't be read or has too many servers.

        A DNS name without addresses is no error: its servers may start later than the manager.
        """
        try:
            if self._file is not None:
                self._found["file"] = self._file.read()
            if self._dns is not None:
                self._found["dns"] = await self._dns.read()
        except NoAddressError as error:
            self._complaints["dns"] = str(error)
            warn("servers_not_listed", f"{error}; it is looked up again every {DNS_EVERY_S:g} s")
        except ValueError as error:
            raise StartError(str(error)) from None
        if len(self.all()) > SLOTS:
            raise StartError(f"{len(self.all())} servers are listed: no more than {SLOTS} at a time")
        return self.all()

    def all(self) -> list[Address]:
        """All servers as last read, without duplicates."""
        return list({a.grpc: a for part in (self._given, *self._found.values()) for a in part}.values())

    async def run(self) -> None:
        """Follow the lists until cancelled."""
        await asyncio.gather(self._watch_file(), self._watch_dns())

    async def _watch_file(self) -> None:
        if self._file is not None:
            async for found in settled(self._file.read, self._pause):
                self._take_or_complain("file", found)

    async def _watch_dns(self) -> None:
        while self._dns is not None:
            await self._pause(DNS_EVERY_S)
            try:
                self._take_or_complain("dns", await self._dns.read())
            except ValueError as error:
                self._complain("dns", str(error))

    def _take_or_complain(self, source: str, found: list[Address] | str) -> None:
        """found: the listed servers, or the reason why the list can't be read."""
        if isinstance(found, str):
            self._complain(source, found)
        elif len(found) > SLOTS:
            self._complain(source, f"{len(found)} servers are listed: no more than {SLOTS} at a time")
        else:
            self._take(source, found)

    def _take(self, source: str, found: list[Address]) -> None:
        self._complaints.pop(source, None)
        if found != self._found.get(source):
            self._found[source] = found
            log("servers_listed", f"{len(self.all())} servers are listed now")
            self._follow(self.all())

    def _complain(self, source: str, error: str) -> None:
        if self._complaints.get(source) != error:
            self._complaints[source] = error
            warn("servers_not_listed", f"{error}; the list of servers does not change")
