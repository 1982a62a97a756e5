"""Loads a model when a request asks for it, and unloads the least recently used one to make room (--max-loaded).

Models are loaded one after the other. A model that makes room finishes what is in flight; new requests for it wait at
the workers, and ask for it again.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable

from tritonembed_manager.router.log import log

LEAST_LOADED_S = 2.0
"""A model that was just loaded is not unloaded for so long: requests that waited for it must reach it first."""
_LOOK_EVERY_S = 0.1


class ModelLoader:
    """models: their ensembles; the first `most` are loaded. load: begins to start a model's servers. unload: returns
    when they have ended. is_starting: whether a model's first answer is still awaited. clock: seconds.
    """

    def __init__(
        self,
        models: Iterable[str],
        most: int,
        *,
        load: Callable[[str], None],
        unload: Callable[[str], Awaitable[None]],
        is_starting: Callable[[str], bool],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._most = most
        self._load, self._unload, self._is_starting = load, unload, is_starting
        self._clock, self._sleep = clock, sleep
        self._used = dict.fromkeys(list(models)[:most], clock())
        """When each loaded model was last used."""
        self._ready_at: dict[str, float] = {}
        """When each was last seen starting."""
        self._leaving: str | None = None
        self._wanted: deque[str] = deque()
        self._news = asyncio.Event()

    @property
    def loaded(self) -> list[str]:
        """The models that are in memory, or on their way there."""
        return list(self._used)

    def want(self, model: str) -> None:
        """A request waits for this model."""
        if model not in self._wanted and (model not in self._used or model == self._leaving):
            self._wanted.append(model)
            self._news.set()

    def used(self, model: str) -> None:
        """A request went to a server of this model."""
        if model in self._used:
            self._used[model] = self._clock()

    async def run(self) -> None:
        """Load what is wanted, until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._wanted:
                model = self._wanted.popleft()
                if model not in self._used:
                    await self._make_room(model)
                    self._used[model] = self._ready_at[model] = self._clock()
                    self._load(model)

    async def _make_room(self, wanted: str) -> None:
        while len(self._used) >= self._most:
            victim = min(self._used, key=lambda model: self._used[model])
            while self._is_new(victim):
                await self._sleep(_LOOK_EVERY_S)
            log("model_unloaded", f"unloading {victim}, the least recently used, for {wanted}")
            self._leaving = victim
            try:
                await self._unload(victim)
            finally:
                self._leaving = None
            del self._used[victim]
            self._ready_at.pop(victim, None)

    def _is_new(self, model: str) -> bool:
        """Whether requests that waited for the model may not have reached it yet."""
        now = self._clock()
        if self._is_starting(model):
            self._ready_at[model] = now
        return now - self._ready_at.get(model, 0.0) < LEAST_LOADED_S
