"""Reads small files that other programs write, such as lists of servers and certificates."""

import os
import stat
from pathlib import Path

_MOST_BYTES = 1 << 20


def read_small(path: Path) -> bytes:
    """The content of a regular file of at most 1 MiB. Raises OSError, whose `strerror` is the reason."""
    # Opening a pipe would block, and reading a device might never end.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(0, "not a file")
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise OSError(0, "larger than 1 MiB")
    return content


def read_pem(path: Path, option: str) -> str:
    """The text of a PEM file. Raises ValueError, in one line that names the option and not the path."""
    try:
        return read_small(path).decode()
    except OSError as error:
        raise ValueError(f"{option} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{option} is not in PEM") from None
