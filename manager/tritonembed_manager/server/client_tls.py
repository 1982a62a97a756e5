"""Connections to servers, in plain text or over TLS: the trusted authorities, and the certificate of this side."""

import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from tritonembed_manager.server.files import load_chain, read_pem, trust
from tritonembed_protocol.tls import without_scheme


@dataclass(frozen=True)
class ClientTls:
    """The contents of PEM files, or None. Without `ca`, the authorities of gRPC or of the system are trusted."""

    ca: str | None = None
    certificate: str | None = None
    key: str | None = field(default=None, repr=False)

    @classmethod
    def read(cls, files: tuple[Path | None, Path | None, Path | None], options: tuple[str, str, str]) -> "ClientTls":
        """Like `of_files`, but checks the contents, too."""
        found = cls.of_files(files, options)
        found.context(options)
        return found

    @classmethod
    def of_files(
        cls, files: tuple[Path | None, Path | None, Path | None], options: tuple[str, str, str]
    ) -> "ClientTls":
        """Reads the files of the authorities, the certificate and its key. options: their names.

        Raises ValueError, in one line that names the option.
        """
        if (files[1] is None) != (files[2] is None):
            raise ValueError(f"{options[1]} and {options[2]} go together")
        pems = (path and read_pem(path, option) for path, option in zip(files, options, strict=True))
        return cls(*(None if pem is None else str(pem) for pem in pems))

    def credentials(self) -> grpc.ChannelCredentials:
        """Credentials for gRPC."""
        pems = (self.ca, self.key, self.certificate)
        return grpc.ssl_channel_credentials(*(None if pem is None else pem.encode() for pem in pems))

    def context(self, options: tuple[str, str, str] = ("the CA", "the certificate", "the key")) -> ssl.SSLContext:
        """A context for HTTP. Raises ValueError as `read` does."""
        if self.ca is None:
            context = ssl.create_default_context()
        else:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            trust(context, self.ca, options[0])
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.certificate is not None and self.key is not None:
            load_chain(context, self.certificate, self.key, options[1:])
        return context


def open_channel(address: str, tls: ClientTls, options: Sequence[tuple[str, Any]]) -> grpc.aio.Channel:
    """A channel to host:port, or over TLS to grpcs://host:port.

    In grpcs://name@host:port, the server's certificate has to be for the name.
    """
    target, secure = without_scheme(address)
    if secure:
        name, _, target = target.rpartition("@")
        named = [("grpc.ssl_target_name_override", name)] if name else []
        return grpc.aio.secure_channel(target, tls.credentials(), [*options, *named])
    return grpc.aio.insecure_channel(target, options)
