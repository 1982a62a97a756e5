"""Messages to the service manager that started this process, as sd_notify(3) sends them to systemd.

Nothing is sent without NOTIFY_SOCKET, which systemd sets for a unit with Type=notify.
"""

import asyncio
import contextlib
import os
import socket

_SOCKET = "NOTIFY_SOCKET"
_MICROSECONDS = 1_000_000
_PATIENCE_S = 1.0


def notify(*lines: str) -> None:
    """Send lines such as READY=1. Nothing happens if the service manager does not listen."""
    address = os.environ.get(_SOCKET)
    if not address:
        return
    if address.startswith("@"):
        # An abstract socket, which has no file.
        address = f"\0{address[1:]}"
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        # Its queue may be full for a moment.
        sender.settimeout(_PATIENCE_S)
        sender.sendto("\n".join(lines).encode(), address)


async def keep_watchdog() -> None:
    """Send WATCHDOG=1 twice per WatchdogSec until cancelled. If the event loop hangs, none is sent, and systemd acts.

    Return at once if the unit has no watchdog.
    """
    microseconds, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID")
    if not microseconds.isdecimal() or int(microseconds) == 0 or pid not in (None, str(os.getpid())):
        return
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(int(microseconds) / _MICROSECONDS / 2)
