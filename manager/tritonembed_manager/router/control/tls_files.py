"""The files of --tls-cert, --tls-key and --tls-client-ca, which are read again and again while the manager runs."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from tritonembed_manager.errors import StartError
from tritonembed_manager.router.log import log, warn
from tritonembed_manager.router.tls import CERTIFICATE, CLIENT_CA, KEY, Pems, server_context
from tritonembed_manager.server.files import read_pem

EVERY_S = 0.5


class TlsFiles:
    """Reads the files at once. Raises StartError, in one line, if they can't serve.

    Only the parent reads them. So all workers have the same certificate, and a worker that is started while the files
    are being written has the last good one.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._complaint = ""
        try:
            self.pems = self._read()
            """The last files that can serve."""
            server_context(self.pems)
        except ValueError as error:
            raise StartError(str(error)) from None

    async def watch(
        self, changed: Callable[[Pems], None], pause: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        """Call `changed` with new files that can serve, until cancelled.

        New files count once two reads in a row gave the same, because they may be in the middle of being written.
        """
        # Reading is as cheap as checking for changes, and notices every way of replacing a file.
        before: Pems | str | None = None
        while True:
            await pause(EVERY_S)
            found = await asyncio.to_thread(self._read_or_reason)
            if found == before:
                self._take_or_complain(found, changed)
            before = found

    def _take_or_complain(self, found: Pems | str, changed: Callable[[Pems], None]) -> None:
        if isinstance(found, str):
            if found != self._complaint:
                self._complaint = found
                warn("tls_not_reloaded", f"{found}; the earlier certificate stays in use")
            return
        self._complaint = ""
        if found != self.pems:
            self.pems = found
            log("tls_reloaded", f"{CERTIFICATE} has changed: new connections get the new certificate")
            changed(found)

    def _read_or_reason(self) -> Pems | str:
        try:
            found = self._read()
            if found != self.pems:
                server_context(found)
        except ValueError as error:
            return str(error)
        return found

    def _read(self) -> Pems:
        return Pems(
            certificate=read_pem(self._certificate, CERTIFICATE),
            key=read_pem(self._key, KEY),
            client_ca=None if self._client_ca is None else read_pem(self._client_ca, CLIENT_CA),
        )
