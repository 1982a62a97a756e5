"""PEM files that are read again and again while the manager runs: of its own ports, and of its way to servers.

Only the parent reads them. So all workers have the same certificates, and a worker that is started while the files are
being written has the last good ones.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Generic, TypeVar

from tritonembed_manager.errors import StartError
from tritonembed_manager.router.log import log, warn
from tritonembed_manager.router.tls import CERTIFICATE, CLIENT_CA, KEY, Pems, server_context
from tritonembed_manager.server.client_tls import ClientTls
from tritonembed_manager.server.files import read_pem

EVERY_S = 0.5
SERVER_CA, SERVER_CERTIFICATE, SERVER_KEY = SERVER_OPTIONS = ("--server-ca", "--server-cert", "--server-key")

_Content = TypeVar("_Content", Pems, ClientTls)


class WatchedFiles(Generic[_Content]):
    """Reads files at once. Raises StartError, in one line, if they can't serve.

    read: their content. check: of a content. Both raise ValueError, in one line. event, changed: in the log, if there
    are new files. kept: in the log after the reason, if new files can't serve.
    """

    def __init__(
        self,
        read: Callable[[], _Content],
        check: Callable[[_Content], object],
        *,
        event: str,
        changed: str,
        kept: str,
    ) -> None:
        self._read: Callable[[], _Content] = read
        self._check: Callable[[_Content], object] = check
        self._event, self._changed, self._kept = event, changed, kept
        self._complaint = ""
        try:
            self.pems: _Content = read()
            """The last content that can serve."""
            check(self.pems)
        except ValueError as error:
            raise StartError(str(error)) from None

    async def watch(
        self, changed: Callable[[_Content], None], pause: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        """Call `changed` with new files that can serve, until cancelled.

        New files count once two reads in a row gave the same, because they may be in the middle of being written.
        """
        # Reading is as cheap as checking for changes, and notices every way of replacing a file.
        before: _Content | str | None = None
        while True:
            await pause(EVERY_S)
            found = await asyncio.to_thread(self._read_or_reason)
            if found == before:
                self._take_or_complain(found, changed)
            before = found

    def _take_or_complain(self, found: _Content | str, changed: Callable[[_Content], None]) -> None:
        if isinstance(found, str):
            if found != self._complaint:
                self._complaint = found
                warn(f"{self._event}_not_reloaded", f"{found}; {self._kept}")
            return
        self._complaint = ""
        if found != self.pems:
            self.pems = found
            log(f"{self._event}_reloaded", self._changed)
            changed(found)

    def _read_or_reason(self) -> _Content | str:
        try:
            found = self._read()
            if found != self.pems:
                self._check(found)
        except ValueError as error:
            return str(error)
        return found


class TlsFiles(WatchedFiles[Pems]):
    """The files of --tls-cert, --tls-key and --tls-client-ca."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        def read() -> Pems:
            return Pems(
                certificate=read_pem(certificate, CERTIFICATE),
                key=read_pem(key, KEY),
                client_ca=None if client_ca is None else read_pem(client_ca, CLIENT_CA),
            )

        super().__init__(
            read,
            server_context,
            event="tls",
            changed=f"{CERTIFICATE} has changed: new connections get the new certificate",
            kept="the earlier certificate stays in use",
        )


class ServerFiles(WatchedFiles[ClientTls]):
    """The files of --server-ca, --server-cert and --server-key, each of which may be None."""

    def __init__(self, ca: Path | None, certificate: Path | None, key: Path | None) -> None:
        super().__init__(
            lambda: ClientTls.of_files((ca, certificate, key), SERVER_OPTIONS),
            lambda pems: pems.context(SERVER_OPTIONS),
            event="server_tls",
            changed=f"{', '.join(SERVER_OPTIONS)}: new connections to grpcs:// servers use the new files",
            kept="the earlier files stay in use",
        )
