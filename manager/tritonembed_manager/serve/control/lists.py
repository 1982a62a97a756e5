"""Follows the lists of attached servers while the manager runs."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from tritonembed_manager.errors import StartError
from tritonembed_manager.serve.control.discovery import Address, ServersDns, ServersFile
from tritonembed_manager.serve.control.logs import log, warn

FILE_EVERY_S = 0.5
DNS_EVERY_S = 5.0


class ServerLists:
    """The servers of the command line, of a file and of a name; `follow` gets all of them whenever that changes.

    A list that can't be read, or that is empty, changes nothing: the last one counts, and a line says so.
    """

    def __init__(
        self,
        given: Sequence[Address],
        file: ServersFile | None,
        dns: ServersDns | None,
        follow: Callable[[list[Address]], None],
        *,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._given = list(given)
        self._file = file
        self._dns = dns
        self._follow = follow
        self._pause = pause
        self._found: dict[str, list[Address]] = {}
        self._complaints: dict[str, str] = {}

    async def first(self) -> list[Address]:
        """All of them as they are now. Raises StartError for a list that can't be read."""
        try:
            if self._file is not None:
                self._found["file"] = self._file.read()
            if self._dns is not None:
                self._found["dns"] = await self._dns.read()
        except ValueError as error:
            raise StartError(str(error)) from None
        return self.all()

    def all(self) -> list[Address]:
        """As last read."""
        return list({a.grpc: a for part in (self._given, *self._found.values()) for a in part}.values())

    async def run(self) -> None:
        """Until cancelled."""
        await asyncio.gather(self._watch_file(), self._watch_dns())

    async def _watch_file(self) -> None:
        # Reading it is as cheap as asking whether it changed, and sees every way in which files are replaced.
        while self._file is not None:
            await self._pause(FILE_EVERY_S)
            try:
                self._take("file", self._file.read())
            except ValueError as error:
                self._complain("file", error)

    async def _watch_dns(self) -> None:
        while self._dns is not None:
            await self._pause(DNS_EVERY_S)
            try:
                self._take("dns", await self._dns.read())
            except ValueError as error:
                self._complain("dns", error)

    def _take(self, source: str, found: list[Address]) -> None:
        self._complaints.pop(source, None)
        if found != self._found.get(source):
            self._found[source] = found
            log("servers_listed", f"{len(self.all())} servers are listed now")
            self._follow(self.all())

    def _complain(self, source: str, error: ValueError) -> None:
        if self._complaints.get(source) != str(error):
            self._complaints[source] = str(error)
            warn("servers_not_listed", f"{error}; the servers stay as they were")
