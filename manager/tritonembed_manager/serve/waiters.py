"""Requests that found no server with room, in the order in which they came."""

import asyncio
from collections.abc import Collection, Hashable

_Told = asyncio.Future[Hashable]


class Waiters:
    """They are told to look again: all when the servers change, one when there is a place it can take."""

    def __init__(self) -> None:
        self._waiters: dict[_Told, Collection[Hashable]] = {}

    def __len__(self) -> int:
        return len(self._waiters)

    async def wait(self, seconds: float, refused: Collection[Hashable]) -> None:
        """Until told, or so long. refused: places that are of no use to it."""
        loop = asyncio.get_running_loop()
        told: _Told = loop.create_future()
        self._waiters[told] = refused
        timer = loop.call_later(seconds, _tell, told, None)
        try:
            await told
        except asyncio.CancelledError:
            if not told.cancelled() and (place := told.result()) is not None:
                self.wake_one(place)  # it is for another
            raise
        finally:
            timer.cancel()
            self._waiters.pop(told, None)

    def wake_one(self, place: Hashable) -> None:
        """Tell the one that waits longest and can use it."""
        for told, refused in self._waiters.items():
            if place not in refused and _tell(told, place):
                del self._waiters[told]
                return

    def wake_all(self) -> None:
        """Tell everyone."""
        waiters, self._waiters = self._waiters, {}
        for told in waiters:
            _tell(told, None)


def _tell(told: _Told, place: Hashable) -> bool:
    if told.done():
        return False
    told.set_result(place)
    return True
