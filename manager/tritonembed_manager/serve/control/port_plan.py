"""Ports for the servers that are launched: the next free ones, held for them as long as the manager runs.

A server listens only once its model is loaded, and again after every restart. Until then any outgoing connection of
this machine could be given its port: the usual ones lie in the range that Linux takes such ports from. A socket that is
bound and does not listen keeps it, and lets a server that reuses addresses, as all of Triton's do, listen there.
"""

import socket
from collections.abc import Callable, Collection

from tritonembed_manager.errors import StartError

HIGHEST = 65535
Hold = Callable[[str, int], socket.socket | None]


class HeldPorts:
    """Free ports; `close` when nothing is to be started on them any more."""

    def __init__(
        self, host: str, start: int, count: int, avoid: Collection[int] = (), hold: Hold | None = None
    ) -> None:
        """`count` ports from `start` on. avoid: ports that are meant for something else.

        Raises StartError when there are not enough.
        """
        self._holders: list[socket.socket] = []
        self.ports: list[int] = []
        self.skipped: list[int] = []
        """Those in between that are in use."""
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
        """Let go of them."""
        for holder in self._holders:
            holder.close()
        self._holders.clear()


def hold_port(host: str, port: int) -> socket.socket | None:
    """A socket that keeps the port; None if it is in use."""
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
    # Only now: with it, the port that another manager holds would have looked free.
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return holder
