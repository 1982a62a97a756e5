"""How the client reaches its servers: addresses, encryption, limits of the connection, and metadata of requests."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from os import PathLike, fspath
from pathlib import Path

import grpc
import grpc.aio

from tritonembed_protocol.tls import GRPCS, without_scheme

Pem = str | PathLike[str] | bytes
Metadata = Mapping[str, str | bytes] | Iterable[tuple[str, str | bytes]]
Pairs = tuple[tuple[str, str | bytes], ...]
Option = tuple[str, int]

# Among several servers, a server that comes back should be found soon, and a server whose host is gone should be given
# up soon; gRPC's own limits are 120 s and 20 s.
SEVERAL: list[Option] = [
    ("grpc.initial_reconnect_backoff_ms", 250),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.min_reconnect_backoff_ms", 5000),
]

API_KEY_VARIABLE = "TRITONEMBED_API_KEY"
_KEY_NAMES = ("authorization", "x-api-key")
_NAME = re.compile(r"[0-9a-z_.-]+")
_VALUE = re.compile(r"[ -~]*")
_KEY = re.compile(r"[!-~]+")


def targets_of(target: str | Iterable[str]) -> list[str]:
    """The addresses of one server or several. Raises ValueError for none, a repeated address, and a port too large."""
    targets = [target] if isinstance(target, str) else list(target)
    if not targets:
        raise ValueError("target: the list of servers is empty")
    if len(set(targets)) != len(targets):
        raise ValueError("target: a server is in the list twice")
    for address in targets:
        _, colon, port = address.rpartition(":")
        # gRPC would take it modulo 65536.
        if colon and port.isdecimal() and not 0 < int(port) <= 65535:
            raise ValueError(f"target: {port} is not a port")
    return targets


def split_schemes(targets: list[str], *, tls: bool) -> tuple[list[str], bool]:
    """The addresses as host:port, and whether to encrypt. Raises ValueError if only some of them have grpcs://."""
    addresses = [without_scheme(target) for target in targets]
    encrypted = {secure or tls for _, secure in addresses}
    if len(encrypted) > 1:
        raise ValueError(f"target: {GRPCS} goes with all servers or none")
    return [address for address, _ in addresses], encrypted.pop()


class ChannelSettings:
    """Everything needed to open gRPC channels; files are read once, when it is made."""

    def __init__(
        self,
        *,
        tls: bool,
        root_certificates: Pem | None,
        private_key: Pem | None,
        certificate_chain: Pem | None,
        keepalive_time: float,
        keepalive_timeout: float,
    ) -> None:
        if not tls and not (root_certificates is private_key is certificate_chain is None):
            raise ValueError("certificates and keys need tls=True, or a target with grpcs://")
        if (private_key is None) != (certificate_chain is None):
            raise ValueError("private_key and certificate_chain go together")
        self._credentials = (
            grpc.ssl_channel_credentials(_pem(root_certificates), _pem(private_key), _pem(certificate_chain))
            if tls
            else None
        )
        self._options: list[Option] = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.keepalive_time_ms", int(keepalive_time * 1000)),
            ("grpc.keepalive_timeout_ms", int(keepalive_timeout * 1000)),
            # Without this option, all channels of a process to one target share one connection and its bandwidth.
            ("grpc.use_local_subchannel_pool", 1),
        ]

    def open(self, targets: list[str]) -> list[grpc.Channel]:
        """A channel to each server, for blocking calls; it connects at the first call."""
        options = self._for(targets)
        if self._credentials is None:
            return [grpc.insecure_channel(target, options) for target in targets]
        return [grpc.secure_channel(target, self._credentials, options) for target in targets]

    def open_aio(self, targets: list[str]) -> list[grpc.aio.Channel]:
        """A channel to each server, for the running event loop."""
        options = self._for(targets)
        if self._credentials is None:
            return [grpc.aio.insecure_channel(target, options) for target in targets]
        return [grpc.aio.secure_channel(target, self._credentials, options) for target in targets]

    def _for(self, targets: list[str]) -> list[Option]:
        return self._options + (SEVERAL if len(targets) > 1 else [])


def _pem(source: Pem | None) -> bytes | None:
    if source is None or isinstance(source, bytes):
        return source
    return Path(fspath(source)).read_bytes()


def metadata_pairs(metadata: Metadata | None) -> Pairs:
    """The pairs with their names in lower case, as HTTP/2 requires.

    Raises ValueError for a pair that cannot be sent, and names only its key: gRPC's own error would print the value,
    which may be a secret.
    """
    if metadata is None:
        return ()
    items = metadata.items() if isinstance(metadata, Mapping) else metadata
    return tuple(_pair(name.lower(), value) for name, value in items)


def with_api_key(pairs: Pairs, api_key: str | None) -> Pairs:
    """The pairs with the key. None: that of the variable TRITONEMBED_API_KEY, unless the pairs have a key already.

    An empty key is none. Raises ValueError, which does not show the key.
    """
    has_key = any(name in _KEY_NAMES for name, _ in pairs)
    if api_key is None and not has_key:
        api_key = os.environ.get(API_KEY_VARIABLE)
    if not api_key:
        return pairs
    if has_key:
        raise ValueError("api_key and metadata both have a key")
    if not _KEY.fullmatch(api_key):
        raise ValueError(f"api_key (or {API_KEY_VARIABLE}) must be printable ASCII characters without spaces")
    return (("authorization", f"Bearer {api_key}"), *pairs)


def added(own: Pairs, more: Pairs) -> Pairs:
    """The client's own pairs and those of a call, whose key replaces the client's."""
    if any(name in _KEY_NAMES for name, _ in more):
        own = tuple(pair for pair in own if pair[0] not in _KEY_NAMES)
    return own + more


def _pair(name: str, value: str | bytes) -> tuple[str, str | bytes]:
    if not _NAME.fullmatch(name) or name.startswith("grpc-"):
        raise ValueError(f"metadata: {name!r} is not a valid header name")
    if name.endswith("-bin"):
        if not isinstance(value, bytes):
            raise ValueError(f"metadata {name}: a name that ends with -bin needs a value of bytes")
    elif not isinstance(value, str) or not _VALUE.fullmatch(value):
        raise ValueError(f"metadata {name}: the value must be a str of printable ASCII characters")
    return name, value
