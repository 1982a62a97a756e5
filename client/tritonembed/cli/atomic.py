"""A file that is there as a whole or not at all."""

from __future__ import annotations

import errno
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
        self._name = str(path)  # the name that the user knows, for messages
        if self._path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self._name)
        if self._path.exists() and not self._path.is_file():
            # A device or a pipe would be lost, replaced by a file.
            raise OSError(errno.EINVAL, "Not a regular file", self._name)
        self._temporary = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}.tmp")
        try:
            self.file: BinaryIO = self._temporary.open("x+b")
        except OSError as error:
            error.filename = self._name
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
        except OSError as failed:
            if kind is not None and not issubclass(kind, OSError):
                return  # what ended the block, such as an interrupt, is the news
            raise OSError(failed.errno, failed.strerror, self._name) from failed
        finally:
            self._temporary.unlink(missing_ok=True)
