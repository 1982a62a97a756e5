"""How the client reaches a server: address, encryption, limits of the connection."""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path

import grpc
import grpc.aio

Pem = str | PathLike[str] | bytes
Option = tuple[str, int]


class ChannelSettings:
    """A target and everything needed to open a gRPC channel to it; files are read here, once."""

    def __init__(
        self,
        target: str,
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
        self._target = target
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

    def open(self) -> grpc.Channel:
        """A channel for blocking calls; it connects at the first one."""
        if self._credentials is None:
            return grpc.insecure_channel(self._target, self._options)
        return grpc.secure_channel(self._target, self._credentials, self._options)

    def open_aio(self) -> grpc.aio.Channel:
        """A channel for the running event loop."""
        if self._credentials is None:
            return grpc.aio.insecure_channel(self._target, self._options)
        return grpc.aio.secure_channel(self._target, self._credentials, self._options)


def _pem(source: Pem | None) -> bytes | None:
    if source is None or isinstance(source, bytes):
        return source
    return Path(fspath(source)).read_bytes()
