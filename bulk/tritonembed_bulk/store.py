"""Files on a disk or in an object store, through pyarrow's file systems. Every write of a file is atomic."""

from __future__ import annotations

import os
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
from pyarrow import fs

READERS = 16
"""Threads that read many small files: an object store takes tens of milliseconds for each."""

Contents: TypeAlias = bytes | pa.Buffer


class BadLocation(ValueError):
    """A path or URI that can't be used. The message is one line."""


def locate(location: str) -> tuple[fs.FileSystem, str]:
    """The file system and the path in it. location: a path, or a URI such as s3://bucket/folder. Raises BadLocation."""
    if "://" not in location:
        return fs.LocalFileSystem(), str(Path(location).absolute())
    try:
        found, path = fs.FileSystem.from_uri(location)
    except (pa.ArrowException, OSError, ValueError) as error:
        scheme = location.partition("://")[0]
        raise BadLocation(f"{scheme}://: pyarrow can't open this ({type(error).__name__})") from None
    return found, path.rstrip("/")


class Store:
    """The files below a folder; names are relative to it. Can be pickled. Methods raise OSError."""

    def __init__(self, location: str) -> None:
        self._fs, self.root = locate(location)
        self.is_local = isinstance(self._fs, fs.LocalFileSystem)

    def path(self, name: str) -> str:
        """A name as a path of the file system."""
        return f"{self.root}/{name}" if name else self.root

    def put(self, name: str, contents: Contents) -> None:
        """Write a file, or replace it. A reader sees the old file or the new file, also after a crash."""
        if self.is_local:
            temporary = self._write_temporary(name, contents)
            os.replace(temporary, self.path(name))
            _sync_folder(Path(self.path(name)).parent)
        else:
            # The object appears when the upload is completed.
            with self._fs.open_output_stream(self.path(name)) as stream:
                stream.write(contents)

    def create(self, name: str, contents: Contents) -> bool:
        """Write a file that is not there yet; False if it is there.

        On a disk at most one of several callers gets True. In an object store two can, if they call in the same moment:
        pyarrow has no conditional put.
        """
        if not self.is_local:
            if self.read(name) is not None:
                return False
            self.put(name, contents)
            return True
        temporary = self._write_temporary(name, contents)
        try:
            # Unlike a rename, a link never replaces a file.
            os.link(temporary, self.path(name))
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        _sync_folder(temporary.parent)
        return True

    def read(self, name: str) -> bytes | None:
        """The file's contents; None if there is none."""
        try:
            with self._fs.open_input_stream(self.path(name)) as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def read_all(self, names: list[str]) -> list[bytes | None]:
        """The contents of many small files."""
        with ThreadPoolExecutor(READERS) as readers:
            return list(readers.map(self.read, names))

    def list(self, folder: str = "") -> list[fs.FileInfo]:
        """The files in a folder, without those in folders below it; temporary files are left out."""
        found = self._fs.get_file_info(fs.FileSelector(self.path(folder), allow_not_found=True))
        return [info for info in found if info.type == fs.FileType.File and not info.base_name.startswith(".")]

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        try:
            self._fs.delete_file(self.path(name))
        except FileNotFoundError:
            return

    def _write_temporary(self, name: str, contents: Contents) -> Path:
        path = Path(self.path(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        with temporary.open("xb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        return temporary

    def remove_temporary(self, folders: tuple[str, ...]) -> None:
        """Remove temporary files in these folders."""
        for folder in folders if self.is_local else ():
            for file in Path(self.path(folder)).glob(".*.tmp"):
                file.unlink(missing_ok=True)


def version_of(found: fs.FileSystem, info: fs.FileInfo) -> str:
    """What changes if the file's contents change: the store's ETag, else the time of the last change."""
    if not isinstance(found, fs.LocalFileSystem):
        with found.open_input_file(info.path) as file:
            metadata: dict[Any, Any] = file.metadata() or {}
        etag = metadata.get("ETag") or metadata.get(b"ETag")
        if etag:
            return str(etag.decode() if isinstance(etag, bytes) else etag).strip('"')
    return str(info.mtime_ns)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
