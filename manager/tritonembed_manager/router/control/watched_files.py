"""Files that people or programs edit while the manager runs: tenants, models, certificates.

The parent reads them repeatedly. If a new version has a mistake, the old one stays in use. A worker that is started
while a file is being written gets the last valid content.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Generic, TypeVar

from tritonembed_manager.errors import StartError
from tritonembed_manager.router.log import log, warn
from tritonembed_manager.router.tls import CERTIFICATE, CLIENT_CA, KEY, Pems, server_context
from tritonembed_manager.server.client_tls import ClientTls
from tritonembed_manager.server.files import read_pem, read_small, settled

SERVER_OPTIONS = ("--server-ca", "--server-cert", "--server-key")

_Content = TypeVar("_Content")
_Value = TypeVar("_Value")


class Watched(Generic[_Content, _Value]):
    """Reads files at once. Raises StartError, in one line, if they are wrong.

    read: their content. parse: the value of a content. Both run in any thread, and raise ValueError or StartError, in
    one line. event, changed: for the log, if the content is new. kept: for the log, after the reason, if the content is
    wrong.
    """

    def __init__(
        self,
        read: Callable[[], _Content],
        parse: Callable[[_Content], _Value],
        *,
        event: str,
        changed: str,
        kept: str,
    ) -> None:
        self._read: Callable[[], _Content] = read
        self._parse: Callable[[_Content], _Value] = parse
        self._event, self._changed, self._kept = event, changed, kept
        self._complaint = ""
        try:
            self._content: _Content = read()
            self.value: _Value = parse(self._content)
            """The value of the last valid content."""
        except (ValueError, StartError) as error:
            raise StartError(str(error)) from None

    @property
    def warnings(self) -> list[str]:
        """A line for the status with the reason if the newest content is not in use."""
        return [self._complaint] if self._complaint else []

    async def watch(
        self, changed: Callable[[_Value], None], pause: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        """Call `changed` with new values, until cancelled."""
        async for found in settled(self._read, pause):
            await self._take_or_complain(found, changed)

    async def _take_or_complain(self, found: _Content | str, changed: Callable[[_Value], None]) -> None:
        if found == self._content and not self._complaint:
            return
        try:
            if isinstance(found, str):
                raise ValueError(found)
            value = self.value if found == self._content else await asyncio.to_thread(self._parse, found)
        except (ValueError, StartError) as error:
            complaint = f"{error}; {self._kept}"
            if complaint != self._complaint:
                self._complaint = complaint
                warn(f"{self._event}_not_reloaded", complaint)
            return
        self._complaint = ""
        if found != self._content:
            self._content, self.value = found, value
            log(f"{self._event}_reloaded", self._changed)
            changed(value)


class WatchedFile(Watched[bytes, _Value]):
    """One file of at most 1 MiB.

    option: names the file in every error. what: the file's entries, in the plural, for events and lines of the log.
    parse: as for Watched; its errors get the option in front.
    """

    def __init__(self, path: Path, option: str, what: str, parse: Callable[[bytes], _Value]) -> None:
        def read() -> bytes:
            try:
                return read_small(path)
            except OSError as error:
                raise ValueError(f"{option}: it cannot be read: {error.strerror}") from None

        def parse_content(content: bytes) -> _Value:
            try:
                return parse(content)
            except (ValueError, StartError) as error:
                text = str(error)
                raise ValueError(text if text.startswith(option) else f"{option}: {text}") from None

        super().__init__(
            read, parse_content, event=what, changed=f"{option} has changed", kept=f"the earlier {what} stay"
        )


class TlsFiles(Watched[Pems, Pems]):
    """The files of --tls-cert, --tls-key and --tls-client-ca."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        def read() -> Pems:
            return Pems(
                certificate=read_pem(certificate, CERTIFICATE),
                key=read_pem(key, KEY),
                client_ca=None if client_ca is None else read_pem(client_ca, CLIENT_CA),
            )

        def check(pems: Pems) -> Pems:
            server_context(pems)
            return pems

        super().__init__(
            read,
            check,
            event="tls",
            changed=f"{CERTIFICATE} has changed: new connections get the new certificate",
            kept="the earlier certificate stays in use",
        )


class ServerFiles(Watched[ClientTls, ClientTls]):
    """The files of --server-ca, --server-cert and --server-key, each of which may be None."""

    def __init__(self, ca: Path | None, certificate: Path | None, key: Path | None) -> None:
        def check(pems: ClientTls) -> ClientTls:
            pems.context(SERVER_OPTIONS)
            return pems

        super().__init__(
            lambda: ClientTls.of_files((ca, certificate, key), SERVER_OPTIONS),
            check,
            event="server_tls",
            changed=f"{', '.join(SERVER_OPTIONS)}: new connections to grpcs:// servers use the new files",
            kept="the earlier files stay in use",
        )
