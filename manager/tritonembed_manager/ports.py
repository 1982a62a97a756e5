"""Are the ports free?"""

import errno
import socket
from collections.abc import Mapping
from typing import Any

from tritonembed_manager.errors import StartError


def check_ports(host: str, ports: Mapping[str, int]) -> None:
    """Raise StartError, naming the option, for a port that can't be listened on or that is given twice.

    ports: option name to port number.
    """
    seen: dict[int, str] = {}
    for option, port in ports.items():
        if port in seen:
            raise StartError(f"{seen[port]} and {option} are both {port}")
        seen[port] = option
        _check_port(host, option, port)


def resolve(host: str, port: int = 0) -> tuple[socket.AddressFamily, Any]:
    """The family and the address to bind for a name or an address, of a name that has both IPv4's.

    Raises StartError for one that is unknown here.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    except socket.gaierror:
        raise StartError(f"--host: {host} is not an address of this machine") from None
    return family, address


def _check_port(host: str, option: str, port: int) -> None:
    family, address = resolve(host, port)
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        # As servers listen: a port whose last connections are still closing is free.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise StartError(f"{option}: port {port} is taken; choose another with {option}") from None
            if error.errno == errno.EADDRNOTAVAIL:
                raise StartError(f"--host: {host} is not an address of this machine") from None
            raise StartError(f"{option}: cannot listen on port {port}: {error.strerror}") from None
