"""Files: written as a whole or not at all, and pyarrow for Parquet files."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from .failures import UsageError


class AtomicFile:
    """Written under a temporary name in the same folder; at the end it takes its own name, and replaces an older file.

    An exception in the ``with`` block, an interrupt included, removes the temporary file.
    """

    def __init__(self, path: Path) -> None:
        # A link stays a link: its target is replaced.
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
                return  # what ended the block, such as an interrupt, is reported instead
            raise OSError(failed.errno, failed.strerror, self._name) from failed
        finally:
            self._temporary.unlink(missing_ok=True)


def load_arrow() -> Any:
    """pyarrow with pyarrow.parquet, imported by Parquet files only. Raises UsageError if it cannot be imported."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise  # main() names the extra to install
    except ImportError as error:
        # Recent releases of pyarrow refuse numpy 1, which some servers' environments need.
        reason = str(error).partition("\n")[0]
        raise UsageError(f"Parquet files need a pyarrow that fits the other packages: {reason}") from error
    return pyarrow
