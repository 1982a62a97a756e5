"""A file that people edit while the manager runs, such as the tenants: a mistake in a new version keeps the old one."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Generic, TypeVar

from tritonembed_manager.errors import StartError
from tritonembed_manager.router.log import log, warn
from tritonembed_manager.server.files import read_small, settled

_Value = TypeVar("_Value")


class WatchedFile(Generic[_Value]):
    """Reads the file at once. Raises StartError, in one line, if it is wrong.

    option: which names the file. what: it has, in the plural; for events and lines of the log. parse: the value of a
    content, in any thread; raises ValueError or StartError, in one line.
    """

    def __init__(self, path: Path, option: str, what: str, parse: Callable[[bytes], _Value]) -> None:
        self._path = path
        self._option = option
        self._what = what
        self._parse = parse
        self._complaint = ""
        self._content = b""
        try:
            self._content = self._read()
            self.value = parse(self._content)
            """Of the last content that was right."""
        except (ValueError, StartError) as error:
            raise StartError(self._line(error)) from None

    @property
    def warnings(self) -> list[str]:
        """For the status: why the file is not in use."""
        return [self._complaint] if self._complaint else []

    async def watch(
        self, changed: Callable[[_Value], None], pause: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        """Call `changed` with new values, until cancelled."""
        async for found in settled(self._read, pause):
            await self._take_or_complain(found, changed)

    async def _take_or_complain(self, found: bytes | str, changed: Callable[[_Value], None]) -> None:
        if found == self._content and not self._complaint:
            return
        try:
            if isinstance(found, str):
                raise ValueError(found)
            value = self.value if found == self._content else await asyncio.to_thread(self._parse, found)
        except (ValueError, StartError) as error:
            complaint = f"{self._line(error)}; the earlier {self._what} stay"
            if complaint != self._complaint:
                self._complaint = complaint
                warn(f"{self._what}_not_reloaded", complaint)
            return
        self._complaint = ""
        if found != self._content:
            self._content, self.value = bytes(found), value
            log(f"{self._what}_reloaded", f"{self._option} has changed")
            changed(value)

    def _line(self, error: Exception) -> str:
        text = str(error)
        return text if text.startswith(self._option) else f"{self._option}: {text}"

    def _read(self) -> bytes:
        try:
            return read_small(self._path)
        except OSError as error:
            raise ValueError(f"it cannot be read: {error.strerror}") from None
