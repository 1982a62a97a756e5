"""Checks that ports are free, and holds the next free ports for launched servers while the manager runs.

A server listens only once its model is loaded, and again after every restart. Until then, Linux could give its port to
an outgoing connection of this machine, because the usual ports lie in the range for such connections. A socket that is
bound and does not listen keeps the port. A server that reuses addresses, as Triton does, can still listen there.
"""

import errno
import socket
from collections.abc import Callable, Collection, Mapping
from typing import Any

from tritonembed_manager.errors import StartError


def check_ports(host: str, ports: Mapping[str, int], hosts: Mapping[str, str] | None = None) -> None:
    """Raise StartError, which names the option, if a port is given twice or a server can't listen on it.

    ports: option name to port number. hosts: option name to host, for options with another host than `host`.
    """
    seen: dict[int, str] = {}
    for option, port in ports.items():
        if port in seen:
            raise StartError(f"{seen[port]} and {option} are both {port}")
        seen[port] = option
        _check_port((hosts or {}).get(option, host), option, port)


def resolve(host: str, port: int = 0, option: str = "--host") -> tuple[socket.AddressFamily, Any]:
    """The family and the address to bind for a name or an address. IPv4 wins if a name has both families.

    Raises StartError if the host is unknown here.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    except socket.gaierror:
        raise StartError(f"{option}: {host} is not an address of this machine") from None
    return family, address


def _check_port(host: str, option: str, port: int) -> None:
    host_option = option.replace("port", "host")
    family, address = resolve(host, port, host_option)
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        # Servers listen with this option: a port whose last connections are still closing is free.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise StartError(f"{option}: port {port} is taken; choose another with {option}") from None
            if error.errno == errno.EADDRNOTAVAIL:
                raise StartError(f"{host_option}: {host} is not an address of this machine") from None
            raise StartError(f"{option}: cannot listen on port {port}: {error.strerror}") from None


FIRST_PORT = 50100
"""From here on, launched servers get ports."""
HIGHEST = 65535
Hold = Callable[[str, int], socket.socket | None]


class HeldPorts:
    """Free ports, which are held until `close`."""

    def __init__(
        self, host: str, start: int, count: int, avoid: Collection[int] = (), hold: Hold | None = None
    ) -> None:
        """Hold `count` ports from `start` on. avoid: ports that are meant for something else.

        Raises StartError if there are not enough.
        """
        self._holders: list[socket.socket] = []
        self.ports: list[int] = []
        self.skipped: list[int] = []
        """Ports in between that are in use or to be avoided."""
        for port in range(start, HIGHEST + 1):
            if len(self.ports) == count:
                return
            holder = None if port in avoid else (hold or hold_port)(host, port)
            (self.skipped if holder is None else self.ports).append(port)
            if holder is not None:
                self._holders.append(holder)
        if len(self.ports) < count:
            self.close()
            raise StartError(f"--start-port: there are no {count} free ports from {start} on")

    def close(self) -> None:
        """Release the ports."""
        for holder in self._holders:
            holder.close()
        self._holders.clear()


def hold_port(host: str, port: int) -> socket.socket | None:
    """A socket that holds the port; None if it is in use. Raises StartError if the host is unknown here."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror:
        raise StartError(f"--replica-host: {host} is not an address of this machine") from None
    holder = socket.socket(family, kind)
    try:
        holder.bind(address)
    except OSError:
        holder.close()
        return None
    # Set only after bind: with it, a port that another manager holds would look free.
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return holder
