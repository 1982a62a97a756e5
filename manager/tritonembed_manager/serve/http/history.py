"""The last minutes of the snapshots that the parent sends, so that a page just opened has something to show."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

KEPT_S = 300
_EVERY_S = 1.0
_MOST_SERVERS = 64
"""More have no history of their own: it would be megabytes for every page that is opened."""
_FIGURES = ("rate", "in_flight", "p50_ms", "p99_ms")

Status = Callable[[], dict[str, Any]]


class History:
    """A point a second: its time, the figures of all, and of each server."""

    def __init__(self, status: Status, kept: int = KEPT_S) -> None:
        self._status = status
        self._points: deque[dict[str, Any]] = deque(maxlen=kept)

    def look(self) -> None:
        """Keep the snapshot of this moment, unless it is kept already."""
        snapshot = self._status()
        at = snapshot.get("time")
        if at is None or (self._points and self._points[-1]["time"] == at):
            return
        point = {"time": at, "totals": _figures(snapshot["totals"])}
        point["servers"] = {server["id"]: _figures(server) for server in snapshot["servers"][:_MOST_SERVERS]}
        self._points.append(point)

    def points(self) -> list[dict[str, Any]]:
        """From the oldest to the newest."""
        return list(self._points)

    async def keep(self) -> None:
        """Look every second, until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(_EVERY_S)


def _figures(of: dict[str, Any]) -> dict[str, Any]:
    return {name: of.get(name) for name in _FIGURES}
