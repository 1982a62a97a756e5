"""Reasons why a new connection fails, from the texts of gRPC, OpenSSL and aiohttp."""

import pytest

from tritonembed_protocol.tls import CLOSES, tls_reason, without_scheme

_FAILED = "failed to connect to all addresses; last error: "
_HANDSHAKE = f"{_FAILED}UNKNOWN: ipv4:127.0.0.1:1: Tls handshake failed (TSI_PROTOCOL_FAILURE): error:1:SSL"


@pytest.mark.parametrize(
    ("details", "reason"),
    [
        (
            f"{_HANDSHAKE}:CERTIFICATE_VERIFY_FAILED: certificate has expired: OK",
            "has expired",
        ),
        (f"{_HANDSHAKE}:CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate: OK", "trusted authority"),
        (f"{_HANDSHAKE}:BAD_SIGNATURE: certificate signature failure: OK", "trusted authority"),
        (f"{_HANDSHAKE}:WRONG_VERSION_NUMBER: Invalid certificate verification context: OK", "does not speak TLS"),
        (f"{_FAILED}UNKNOWN: ipv4:127.0.0.1:1: UNAUTHENTICATED: Hostname Verification Check failed.", "host name"),
        ("certificate verify failed: IP address mismatch, certificate is not valid for '127.0.0.1'.", "host name"),
        (f"{_FAILED}UNAVAILABLE: ipv4:127.0.0.1:1: Socket closed", CLOSES),
        (f"{_FAILED}UNKNOWN: ipv4:127.0.0.1:1: Failed to connect to remote host: Connection refused", None),
        ("Socket closed", None),
        ("", None),
        (None, None),
    ],
)
def test_the_reason_is_found_in_the_text_of_the_library(details, reason):
    found = tls_reason(details)
    assert found is None if reason is None else reason in found


def test_an_address_is_split_from_its_scheme():
    assert without_scheme("grpcs://a:1") == ("a:1", True)
    assert without_scheme("a:1") == ("a:1", False)
