"""A file that is there as a whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from types import TracebackType
from typing import BinaryIO


class AtomicFile:
    """Written under another name in the same folder; takes its own name (and the place of an older file) at the end.

    Leaving the ``with`` block by an exception, an interrupt included, removes what was written.
    """

    def __init__(self, path: Path) -> None:
        # A link stays a link: the file that it points to is replaced.
        self._path = Path(os.path.realpath(path))
        self._temporary = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}.tmp")
        try:
            self.file: BinaryIO = self._temporary.open("x+b")
        except OSError as error:
            error.filename = str(path)  # the name that the user knows
            raise

    def __enter__(self) -> BinaryIO:
        return self.file

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.file.close()
            if kind is None:
                os.replace(self._temporary, self._path)
        finally:
            self._temporary.unlink(missing_ok=True)
