"""Certificates for tests: authorities, and certificates of servers and clients that they sign."""

import datetime
import ipaddress
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_DAY = datetime.timedelta(days=1)


class Authority:
    """A certificate authority, with a key of its own."""

    def __init__(self, name: str = "an authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named(name)
        self._certificate = _builder(self._name, self._name, self._key, days=(-1, 30))
        self._certificate = self._certificate.add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        self.pem = _pem(self._certificate.sign(self._key, hashes.SHA256()))

    def sign(
        self, name: str = "localhost", *, host: str = "127.0.0.1", days: tuple[int, int] = (-1, 30)
    ) -> tuple[str, str]:
        """A certificate for a server or a client, and its key, both in PEM. days: begin and end, from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        hosts = x509.SubjectAlternativeName([x509.DNSName(name), x509.IPAddress(ipaddress.ip_address(host))])
        uses = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        builder = _builder(_named(name), self._name, key, days).add_extension(hosts, False).add_extension(uses, False)
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return _pem(builder.sign(self._key, hashes.SHA256())), secret.decode()


class Files:
    """The files of an authority and of a server that it signed, as an operator has them in a folder."""

    def __init__(self, folder: Path, authority: Authority | None = None) -> None:
        self.authority = authority or Authority()
        self.ca, self.certificate, self.key = folder / "ca.pem", folder / "tls.crt", folder / "tls.key"
        self.ca.write_text(self.authority.pem)
        self.renew()

    def renew(self, authority: Authority | None = None, **signed: object) -> None:
        """Replace the certificate and its key."""
        certificate, key = (authority or self.authority).sign(**signed)
        self.certificate.write_text(certificate)
        self.key.write_text(key)

    def credentials(self, client_ca: str | None = None) -> grpc.ServerCredentials:
        """For a gRPC server. client_ca: clients need a certificate that it signed."""
        pair = self.key.read_bytes(), self.certificate.read_bytes()
        authority = client_ca and client_ca.encode()
        return grpc.ssl_server_credentials([pair], authority or None, require_client_auth=client_ca is not None)

    @property
    def options(self) -> list[str]:
        """Of `serve`."""
        return [f"--tls-cert={self.certificate}", f"--tls-key={self.key}"]


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: tuple[int, int]
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.timezone.utc)
    begin, end = (now + day * _DAY for day in days)
    return x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number(), begin, end)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
