"""The event loop in the role of a selector: what `replica` waits for with the one, `serve` waits for with the other."""

import asyncio
from collections.abc import Callable
from typing import Any


class LoopSelector:
    """Calls `report(data)` when a registered descriptor becomes readable."""

    def __init__(self, report: Callable[[Any], None]) -> None:
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._registered: set[int] = set()

    def register(self, fileobj: int, events: int, data: Any) -> None:  # noqa: ARG002 - as selectors have it
        """Report, with `data`, when the descriptor becomes readable."""
        self._registered.add(fileobj)
        self._loop.add_reader(fileobj, self._report, data)

    def unregister(self, fileobj: int) -> None:
        """No longer; nothing happens for one that is not registered."""
        if fileobj in self._registered:
            self._registered.discard(fileobj)
            self._loop.remove_reader(fileobj)

    def close(self) -> None:
        """Report nothing any more."""
        for fileobj in list(self._registered):
            self.unregister(fileobj)
