"""TLS between clients and servers: the form of their addresses, and reasons why a handshake fails, in plain words."""

GRPCS = "grpcs://"
"""Before host:port: gRPC over TLS."""

_REASONS = (
    ("certificate has expired", "the server's certificate has expired"),
    ("certificate is not yet valid", "the server's certificate is not valid yet"),
    ("Hostname Verification Check failed", "the server's certificate is for another host name"),
    ("Hostname mismatch", "the server's certificate is for another host name"),
    ("IP address mismatch", "the server's certificate is for another host name"),
    ("certificate is not valid for", "the server's certificate is for another host name"),
    ("CERTIFICATE_VERIFY_FAILED", "the server's certificate is not signed by a trusted authority"),
    # Of another authority with the same name.
    ("certificate signature failure", "the server's certificate is not signed by a trusted authority"),
    ("WRONG_VERSION_NUMBER", "the server does not speak TLS"),
    ("packet length too long", "the server does not speak TLS"),
    ("record layer failure", "the server does not speak TLS"),
    ("CERTIFICATE_REQUIRED", "the server requires a client certificate"),
    ("ALERT_UNKNOWN_CA", "the server does not trust the client certificate"),
)
_CONNECTING = "failed to connect to all addresses"
_CLOSED = ("Socket closed", "Connection reset by peer", "recvmsg:Connection reset by peer")
CLOSES = "the server closes new connections: perhaps it speaks TLS, or requires another client certificate"


def tls_reason(details: str | None) -> str | None:
    """The reason in an error of gRPC, OpenSSL or aiohttp about a new connection; None if it is not about TLS."""
    if not details:
        return None
    for words, reason in _REASONS:
        if words in details:
            return reason
    # A server sends no reason in plain text, nor to a client that it refuses.
    return CLOSES if details.startswith(_CONNECTING) and details.endswith(_CLOSED) else None


def without_scheme(target: str) -> tuple[str, bool]:
    """host:port, and whether it is reached over TLS."""
    return target.removeprefix(GRPCS), target.startswith(GRPCS)
