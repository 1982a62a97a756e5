"""How the client reaches its servers: addresses, encryption, limits of the connection."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike, fspath
from pathlib import Path

import grpc
import grpc.aio

Pem = str | PathLike[str] | bytes
Option = tuple[str, int]


# With several servers, one that comes back is to be found soon, and one whose host is gone is to be given up soon;
# gRPC's own limits are 120 s and 20 s.
SEVERAL: list[Option] = [
    ("grpc.initial_reconnect_backoff_ms", 250),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.min_reconnect_backoff_ms", 5000),
]


def targets_of(target: str | Iterable[str]) -> list[str]:
    """The addresses of one server or of several; ValueError for none, one that is there twice, and a port too large."""
    targets = [target] if isinstance(target, str) else list(target)
    if not targets:
        raise ValueError("target: there is no server in the list")
    if len(set(targets)) != len(targets):
        raise ValueError("target: a server is in the list twice")
    for one in targets:
        _, colon, port = one.rpartition(":")
        # gRPC would take it modulo 65536.
        if colon and port.isdecimal() and not 0 < int(port) <= 65535:
            raise ValueError(f"target: {port} is no port")
    return targets


class ChannelSettings:
    """Everything needed to open gRPC channels; files are read here, once."""

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
            raise ValueError("certificates and keys need tls=True")
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
            # Without it all channels of a process to one target share one connection, and its bandwidth.
            ("grpc.use_local_subchannel_pool", 1),
        ]

    def open(self, targets: list[str]) -> list[grpc.Channel]:
        """A channel to each server, for blocking calls; it connects at the first one."""
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
