"""Digests of files' contents. A cache keeps those of large files, so that each is read once per machine."""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CACHED_FROM = 1 << 20
"""Bytes. Smaller files are read each time."""
HASHED_AT_ONCE = 1 << 22
FILES_AT_ONCE = 8
"""Shards of a large model: a core hashes about a GB per second."""
_DIGITS = 64


def cache_folder(kind: str) -> Path | None:
    """This user's cache folder for a kind of data; None if it can't be written."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "tritonembed" / kind
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def digests_of(files: Sequence[Path]) -> list[str]:
    """The SHA-256 of each file's contents, in hexadecimal digits."""
    cache = cache_folder("contents")
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        return list(pool.map(lambda file: digest_of(file, cache), files))


def digest_of(file: Path, cache: Path | None) -> str:
    """As `digests_of`, for one file. cache: the folder of large files' digests; None: the file is read.

    Another process that needs the same digest waits for this process instead of reading the file, too.
    """
    found = file.stat()
    if cache is None or found.st_size < CACHED_FROM:
        return _read(file)
    # No program can set the time of the last change (ctime), so it differs if a file was replaced by one of the same
    # name, size and time of modification.
    state = [str(file.resolve()), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
    name = hashlib.sha256(json.dumps(state).encode()).hexdigest()[:32]
    try:
        with (cache / name).open("a+", encoding="ascii") as kept:
            fcntl.flock(kept, fcntl.LOCK_EX)
            kept.seek(0)
            digest = kept.read()
            # A disk that was full may have left a part.
            if len(digest) != _DIGITS:
                digest = _read(file)
                with contextlib.suppress(OSError):
                    kept.truncate(0)
                    kept.write(digest)
                    kept.flush()
            return digest
    except OSError:
        return _read(file)


def _read(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(HASHED_AT_ONCE):
            digest.update(block)
    return digest.hexdigest()
