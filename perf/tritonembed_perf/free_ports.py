"""Ports for servers that listen seconds later, once their models are loaded."""

import random
import socket
from contextlib import ExitStack, suppress
from pathlib import Path

_GIVEN_AWAY = Path("/proc/sys/net/ipv4/ip_local_port_range")
_TRIES = 1000
_CHANCE = random.SystemRandom()
"""Without a seed: another program may have the same one."""


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now, outside the range from which the kernel serves requests for any port.

    Within that range another program could be given the port before the server listens.
    """
    ports: list[int] = []
    with ExitStack() as held:
        for port in _CHANCE.sample(_candidates(), _TRIES):
            with suppress(OSError):
                held.enter_context(socket.create_server(("127.0.0.1", port)))
                ports.append(port)
            if len(ports) == count:
                return ports
    raise OSError(f"of {_TRIES} ports fewer than {count} are free")


def _candidates() -> range:
    """Below the kernel's range; all ports if that covers nearly all."""
    try:
        first = int(_GIVEN_AWAY.read_text().split()[0])
    except OSError:
        first = 0
    return range(10_000, first if first >= 12_000 else 60_000)
