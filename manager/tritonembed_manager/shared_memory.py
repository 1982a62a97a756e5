"""The regions that Triton's python backend keeps in /dev/shm."""

import os
import secrets
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")


def new_region_prefix() -> str:
    """A prefix that no other server on this host has: two with the same one would write into each other's memory."""
    return f"tritonembed_{os.getpid()}_{secrets.token_hex(4)}_"


def regions(prefix: str, folder: Path = SHARED_MEMORY) -> list[Path]:
    """The regions with this prefix that exist."""
    if not prefix:
        raise ValueError("an empty prefix would match the regions of others")
    return sorted(path for path in folder.iterdir() if path.name.startswith(prefix)) if folder.is_dir() else []


def remove_regions(prefix: str, folder: Path = SHARED_MEMORY) -> int:
    """Remove them, once the processes that use them have ended; returns how many there were."""
    found = regions(prefix, folder)
    for path in found:
        path.unlink(missing_ok=True)
    return len(found)
