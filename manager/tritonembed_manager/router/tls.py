"""TLS of the manager's ports: certificates, their checks, and the credentials of gRPC and of HTTP.

New handshakes use the newest certificate. Open connections keep theirs. Only the parent reads the files
(control/watched_files.py), so that all workers have the same certificates.
"""

import ssl
from contextlib import suppress
from dataclasses import dataclass, field

import grpc

from tritonembed_manager.server.files import load_chain, trust

CERTIFICATE, KEY, CLIENT_CA = "--tls-cert", "--tls-key", "--tls-client-ca"
_TIME_ERRORS = {9: "not valid yet", 10: "expired"}
"""OpenSSL's codes (X509_V_ERR_…)."""
_MOST_FLIGHTS = 10


@dataclass(frozen=True)
class Pems:
    """The contents of PEM files. client_ca: clients need a certificate that it signed; None if they need none."""

    certificate: str
    """The server's certificate; those of intermediate authorities may follow."""
    key: str = field(repr=False)
    client_ca: str | None


def server_context(pems: Pems) -> ssl.SSLContext:
    """The context of HTTP's handshakes. Raises ValueError, which names the option, if the files can't serve."""
    return _context_and_end(pems)[0]


def _context_and_end(pems: Pems) -> tuple[ssl.SSLContext, float | None]:
    """The context, and when its certificate expires, in seconds since 1970; None if unknown."""
    authority = _context(ssl.PROTOCOL_TLS_CLIENT)
    authority.check_hostname = False
    trust(authority, pems.certificate, CERTIFICATE)
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    load_chain(context, pems.certificate, pems.key, (CERTIFICATE, KEY))
    expires = _check_times(context, authority)
    if pems.client_ca is not None:
        trust(context, pems.client_ca, CLIENT_CA)
        context.verify_mode = ssl.CERT_REQUIRED
    return context, expires


def _context(protocol: "ssl._SSLMethod") -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _check_times(server: ssl.SSLContext, client: ssl.SSLContext) -> float | None:
    """When the certificate expires, by a handshake in memory. Raises ValueError if it is not valid now.

    client: trusts it.
    """
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)
    try:
        for _ in range(_MOST_FLIGHTS):
            for end in ends:
                with suppress(ssl.SSLWantReadError):
                    end.do_handshake()
    except ssl.SSLCertVerificationError as error:
        # Clients judge everything else, such as the certificate's purpose.
        if error.verify_code in _TIME_ERRORS:
            raise ValueError(f"{CERTIFICATE} is {_TIME_ERRORS[error.verify_code]}") from None
        return None
    expires = (ends[0].getpeercert() or {}).get("notAfter")
    return float(ssl.cert_time_to_seconds(expires)) if isinstance(expires, str) else None


class ServerTls:
    """The TLS of a worker's ports. Raises ValueError as `server_context` does."""

    def __init__(self, pems: Pems) -> None:
        self.context, self.expires = _context_and_end(pems)
        """The context for HTTP's next handshake, and the end of its certificate in seconds since 1970, if known."""
        self._next: grpc.ServerCertificateConfiguration | None = None
        self.credentials = grpc.dynamic_ssl_server_credentials(
            _configuration(pems),
            self._take,  # type: ignore[arg-type] # The type stubs don't know that it may return None.
            require_client_authentication=pems.client_ca is not None,
        )
        """The credentials of the gRPC port, set once."""

    def update(self, pems: Pems) -> None:
        """Use these files for new handshakes. Raises ValueError, and then nothing changes."""
        self.context, self.expires = _context_and_end(pems)
        self._next = _configuration(pems)

    def _take(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC before each handshake, in its own threads. None: nothing has changed."""
        taken, self._next = self._next, None
        return taken


def _configuration(pems: Pems) -> grpc.ServerCertificateConfiguration:
    authority = None if pems.client_ca is None else pems.client_ca.encode()
    return grpc.ssl_server_certificate_configuration([(pems.key.encode(), pems.certificate.encode())], authority)
