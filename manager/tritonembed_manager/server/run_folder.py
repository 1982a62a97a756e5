"""A running manager's data on this machine: its temporary folder, and its servers' regions in /dev/shm.

If the manager is killed, a later manager removes both. A lock on a file in the folder shows that a living process uses
it. The manager holds the lock, and so does every tritonserver that it started. The kernel releases it once the last of
them has ended, for any reason and in any pid namespace. A pid would not do, because by now it could belong to another
process or another container.

The folder holds the rendered repositories, unless --work-dir names another one. Its path is plain, because Triton
starts its python processes through bash, without quoting. Triton's python backend makes the regions.
"""

import contextlib
import fcntl
import functools
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tritonembed_manager.errors import StartError

_SHARED_MEMORY = Path("/dev/shm")


@functools.cache
def _region_root() -> str:
    """The start of all prefixes of this process."""
    return f"tritonembed_{os.getpid()}_{secrets.token_hex(4)}"


def new_region_prefix() -> str:
    """A prefix that is unique on this host. Otherwise servers would write into each other's memory."""
    return f"{_region_root()}_{secrets.token_hex(4)}_"


def regions(prefix: str, folder: Path = _SHARED_MEMORY) -> list[Path]:
    """The existing regions with this prefix. Raises ValueError if it is empty."""
    if not prefix:
        raise ValueError("an empty prefix would match the regions of others")
    return sorted(path for path in folder.iterdir() if path.name.startswith(prefix)) if folder.is_dir() else []


def make_private(prefix: str, folder: Path = _SHARED_MEMORY) -> None:
    """Let only this user read the regions, because they hold requests in flight.

    Triton makes them 0644, whatever the umask. Our models also make them private while they load.
    """
    for path in regions(prefix, folder):
        with contextlib.suppress(OSError):
            if path.stat().st_mode & 0o077:
                path.chmod(0o600)


def remove_regions(prefix: str, folder: Path = _SHARED_MEMORY) -> int:
    """Remove the regions, once the processes that use them have ended. Returns how many there were."""
    found = regions(prefix, folder)
    for path in found:
        # Another user's regions are not ours, whatever their prefix.
        with contextlib.suppress(OSError):
            if path.lstat().st_uid == os.geteuid():
                path.unlink()
    return len(found)


_PLAIN = re.compile(r"/[A-Za-z0-9_./+@%,=-]*")


def is_plain(path: Path) -> bool:
    """Whether a path is absolute and has no space, no colon and no character that is special to a shell."""
    return _PLAIN.fullmatch(str(path)) is not None


def plain(path: Path, links: Path) -> Path:
    """The path itself if it is plain, or else a link to it in `links`, a folder with a plain path."""
    if is_plain(path):
        return path
    number = 0
    while (link := links / f"link-{number}").is_symlink():
        if link.readlink() == path:
            return link
        number += 1
    link.symlink_to(path)
    return link


PREFIX = "tritonembed-"
LOCK = ".lock"
_ROOT = re.compile(r"tritonembed_\d+_[0-9a-f]{8}")


@dataclass(frozen=True)
class RunFolder:
    """A folder with a plain path that no other user can open (0700)."""

    path: Path
    lock: int
    """A file descriptor. The folder stays while any process has it open."""

    def home(self) -> Path:
        """An empty folder for servers to run in, so that a search of the current folder finds nothing."""
        folder = self.path / "home"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder


@contextlib.contextmanager
def run_folder() -> Iterator[RunFolder]:
    """Make the folder, and remove it at the end. First remove the folders of this user's dead managers.

    Raises StartError if no folder for temporary files lets programs run.
    """
    parents = _parents()
    for parent in {*parents, Path(tempfile.gettempdir())}:
        clear_leftovers(parent)
    if not parents:
        raise StartError(f"no folder for temporary files from which programs may run: {tempfile.gettempdir()} (TMPDIR)")
    path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parents[0]))
    lock = _locked(path)
    try:
        yield RunFolder(path, lock)
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def clear_leftovers(parent: Path, regions: Path = _SHARED_MEMORY) -> int:
    """Remove this user's run folders that no living process uses, and their shared memory. Returns their number."""
    try:
        found = [entry for entry in os.scandir(parent) if entry.name.startswith(PREFIX)]
    except OSError:
        return 0
    return sum(_clear(Path(entry.path), regions) for entry in found if _is_ours(entry))


def _is_ours(entry: "os.DirEntry[str]") -> bool:
    with contextlib.suppress(OSError):
        status = entry.stat(follow_symlinks=False)
        return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
    return False


def _clear(folder: Path, regions: Path) -> bool:
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        root = os.read(lock, 100).decode(errors="replace").strip()
        if _ROOT.fullmatch(root):
            remove_regions(f"{root}_", regions)
        shutil.rmtree(folder, ignore_errors=True)
        return True
    except OSError:
        return False
    finally:
        os.close(lock)


def _locked(folder: Path) -> int:
    # Until it is locked, the file has another name: a manager that starts now must not take it for a dead manager's.
    unfinished = folder / f"{LOCK}.new"
    lock = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    with contextlib.suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(lock, _region_root().encode())
        unfinished.rename(folder / LOCK)
    return lock


def _parents() -> list[Path]:
    """The possible parent folders, best first: a shell must be able to run Triton's stub there."""
    candidates: Iterable[Path] = map(Path, (tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"))
    return [folder for folder in dict.fromkeys(candidates) if is_plain(folder) and _runs_programs(folder)]


def _runs_programs(folder: Path) -> bool:
    try:
        return os.access(folder, os.W_OK | os.X_OK) and not os.statvfs(folder).f_flag & os.ST_NOEXEC
    except OSError:
        return False


_OTHERS_WRITE = 0o022


def work_folder(chosen: Path | None, run: RunFolder) -> Path:
    """A plain path to the folder of --work-dir, which stays at the end, or else to the manager's temporary folder.

    Raises StartError if the folder can't be made.
    """
    if chosen is None:
        return run.path
    try:
        chosen.parent.mkdir(parents=True, exist_ok=True)
        chosen.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StartError(f"--work-dir: cannot make {chosen}: {error.strerror}") from None
    return plain(chosen, run.path)


def warning(chosen: Path | None) -> str | None:
    """A warning if other users can write into the folder, because its content is run as code; else None."""
    with contextlib.suppress(OSError):
        status = chosen.stat() if chosen is not None else None
        if status and (status.st_mode & _OTHERS_WRITE or status.st_uid not in (0, os.geteuid())):
            return f"--work-dir: other users can write to {chosen}, and its files are run as code"
    return None
