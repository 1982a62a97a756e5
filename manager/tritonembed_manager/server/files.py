"""Reads and watches small files that other programs write, such as lists of servers; loads certificates in PEM."""

import asyncio
import os
import ssl
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

_MOST_BYTES = 1 << 20
_EVERY_S = 0.5
"""Seconds between two reads of a watched file."""
_Content = TypeVar("_Content")


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


async def settled(
    read: Callable[[], _Content], pause: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> AsyncIterator[_Content | str]:
    """The result of `read`, or the text of its ValueError, whenever two reads in a row have the same result. Endless.

    A file that is being written may end in half a line. Reading is as cheap as checking for changes, and notices every
    way of replacing a file.
    """
    before: _Content | str | None = None
    while True:
        await pause(_EVERY_S)
        found = await asyncio.to_thread(_content_or_reason, read)
        if found == before:
            yield found
        before = found


def _content_or_reason(read: Callable[[], _Content]) -> _Content | str:
    try:
        return read()
    except ValueError as error:
        return str(error)


_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
_MISMATCH = "KEY_VALUES_MISMATCH"
_WEAK = ("EE_KEY_TOO_SMALL", "CA_MD_TOO_WEAK")


def trust(context: ssl.SSLContext, certificates: str, option: str) -> None:
    """Let a context trust these certificates. Raises ValueError, in one line that names the option."""
    if _BEGIN not in certificates:
        raise ValueError(f"{option} has no certificate in PEM")
    try:
        context.load_verify_locations(cadata=certificates)
    except (ssl.SSLError, ValueError):
        complete = False
    else:
        # OpenSSL ignores a certificate without its end if others precede it.
        complete = certificates.count(_BEGIN) == certificates.count(_END)
    if not complete:
        raise ValueError(f"{option} has a certificate that is damaged or cut off")


def load_chain(context: ssl.SSLContext, certificate: str, key: str, options: tuple[str, str]) -> None:
    """Let a context show this certificate. options: of the certificate and of the key. Raises ValueError likewise."""
    encrypted = False
    of_certificate, of_key = options

    def password() -> str:
        # Without this function OpenSSL would ask at the terminal.
        nonlocal encrypted
        encrypted = True
        return ""

    if _BEGIN not in certificate:
        raise ValueError(f"{of_certificate} has no certificate in PEM")
    if "PRIVATE KEY-----" not in key:
        raise ValueError(f"{of_key} has no private key in PEM")
    try:
        with _as_file(certificate) as first, _as_file(key) as second:
            context.load_cert_chain(first, second, password)
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None)
        if encrypted:
            raise ValueError(f"{of_key} is encrypted; a key without a password is needed") from None
        if reason == _MISMATCH:
            raise ValueError(f"{of_key} does not match {of_certificate}") from None
        if reason in _WEAK:
            raise ValueError(f"{of_certificate}: its key or its signature is too weak") from None
        raise ValueError(f"{of_key} has a key that is damaged or cut off") from None


@contextmanager
def _as_file(content: str) -> Iterator[str]:
    """The path of a file in memory, because contexts load only from files. No key gets onto a disk."""
    fd = os.memfd_create("pem")
    try:
        with open(fd, "w", encoding="ascii", errors="replace", closefd=False) as file:
            file.write(content)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
