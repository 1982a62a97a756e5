"""Where rendered repositories and what else a command needs on disk is kept while it runs."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tritonembed_manager.errors import StartError


@contextmanager
def work_folder(chosen: Path | None) -> Iterator[Path]:
    """The folder chosen with --work-dir, which stays, or a temporary one. Raises StartError if it can't be made."""
    if chosen is not None:
        try:
            chosen.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StartError(f"--work-dir: cannot make {chosen}: {error.strerror}") from None
        yield chosen
        return
    work = Path(tempfile.mkdtemp(prefix="tritonembed-"))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
