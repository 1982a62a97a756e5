"""Usage lines: per minute and tenant one JSON object with requests and tokens, from which a bill can be made.

    {"minute": "2026-11-30T10:43:00Z", "tenant": "search", "requests": 120, "tokens": 51234, "failed": 0, "refused": 3}

They come from the quota table, so a worker that dies loses none of its counts. A line has the difference to the line
before, so lines add up. If the parent itself is killed, the last minute is missing.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timezone
from pathlib import Path

from tritonembed_manager.router.data.quotas import QuotaTable, Used
from tritonembed_manager.router.log import warn

OPTION = "--usage-file"
_MINUTE_S = 60
_NOTHING = Used(0, 0, 0, 0, 0, 0, 0)


class UsageLines:
    """slots: returns the slots of all tenants since the start, by name. clock: seconds of Unix time."""

    def __init__(
        self,
        path: Path,
        table: QuotaTable,
        slots: Callable[[], dict[str, int]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._table = table
        self._slots = slots
        self._clock = clock
        self._written: dict[str, Used] = {}
        self._minute = self._now()

    async def keep(self, pause: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Write the lines of each minute at its end, until cancelled."""
        while True:
            # Never longer than a minute, also if the machine's clock is set back.
            await pause(min(max(0.0, self._minute + _MINUTE_S - self._clock()), _MINUTE_S))
            if self._now() != self._minute:
                self.write()
                self._minute = self._now()

    def write(self) -> None:
        """Append the lines of the current minute; call it in the end, too. Lines that can't be written come later."""
        found = {name: self._table.used(slot) for name, slot in self._slots().items()}
        lines = [self._line(name, self._written.get(name, _NOTHING), used) for name, used in found.items()]
        text = "".join(lines)
        if not text:
            return
        try:
            # Opened anew, so that the file can be rotated.
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            warn("usage_not_written", f"{OPTION} cannot be written: {error.strerror}; the counts are kept")
            return
        self._written = found

    def _line(self, name: str, before: Used, now: Used) -> str:
        counted = {
            "requests": now.answered - before.answered,
            "tokens": now.tokens - before.tokens,
            "failed": now.failed - before.failed,
            "refused": now.refused - before.refused,
        }
        if not any(counted.values()):
            return ""
        minute = datetime.fromtimestamp(self._minute, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        return json.dumps({"minute": minute, "tenant": name, **counted}) + "\n"

    def _now(self) -> float:
        return self._clock() // _MINUTE_S * _MINUTE_S
