"""The folder that `tune` writes at the end of its measuring: made, and found to be good, before it begins."""

import contextlib
import errno
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tritonembed_manager.errors import StartError
from tritonembed_manager.repository import MARKER


@contextlib.contextmanager
def out_folder(out: Path, force: bool) -> Iterator[None]:
    """Make `out`; at the end, where nothing was written to it, remove what was made.

    Raises StartError for a folder that `render` would refuse after all the measuring.
    """
    if str(out).startswith("-"):
        raise StartError(f"the folder to write comes first, before {out}")
    if out.name in ("", ".."):
        raise StartError(f"{out} can't be replaced; give the folder to write by its name")
    if out.exists() and not out.is_dir():
        raise StartError(f"{out} is not a folder")
    if out.is_dir() and any(out.iterdir()) and not force and not (out / MARKER).is_file():
        raise StartError(f"{out} was not written by render; choose another folder, or --force to write into it")
    made: list[Path] = []
    try:
        try:
            _make(out, made)
            _rehearse(out)
        except OSError as error:
            raise StartError(f"cannot write {out}: {_reason(error)}") from None
        yield
    finally:
        # A folder that holds something was written to, and so were those above it.
        with contextlib.suppress(OSError):
            for folder in reversed(made):
                folder.rmdir()


def _make(out: Path, made: list[Path]) -> None:
    """`out` and what is missing above it; to `made`, as far as it comes."""
    for folder in reversed([out, *out.parents]):
        if not folder.exists():
            made.append(folder)
            folder.mkdir()


def _rehearse(out: Path) -> None:
    """What `render` will do: write beside `out`, and move that there. Permissions alone don't tell (/proc, mounts)."""
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        probe = Path(scratch) / Path(scratch).name
        probe.touch()
        moved = out / probe.name
        try:
            probe.replace(moved)
        finally:
            moved.unlink(missing_ok=True)


def _reason(error: OSError) -> str:
    if error.errno == errno.EXDEV:
        return "a mounted folder can't be replaced; choose one inside it"
    return f"no folder can be made there ({error.strerror})"
