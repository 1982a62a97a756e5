"""TLS in Envoy: the certificate and its key, in a file of the private folder that is replaced when they change."""

from pathlib import Path

from tritonembed_manager.router.control.envoy.clusters import watched
from tritonembed_manager.router.control.envoy.protobuf_json import Config, extension, typed
from tritonembed_manager.router.tls import Pems

_CERTIFICATE, _CLIENT_CA = "certificate", "client_ca"
_PROTOCOLS = {"grpc": ["h2"], "http": ["http/1.1"]}


def certificate_file(folder: Path) -> Path:
    """Where Envoy reads the certificate."""
    return folder / "certificate.json"


def client_ca_file(folder: Path) -> Path:
    """Where Envoy reads the authorities of clients."""
    return folder / "client_ca.json"


def certificate(pems: Pems) -> Config:
    """The resource with the certificate and its key."""
    inline = {
        "certificate_chain": {"inline_string": pems.certificate},
        "private_key": {"inline_string": pems.key},
    }
    return typed("envoy.extensions.transport_sockets.tls.v3.Secret", name=_CERTIFICATE, tls_certificate=inline)


def client_ca(authorities: str) -> Config:
    """The resource with the authorities of clients. authorities: in PEM."""
    return typed(
        "envoy.extensions.transport_sockets.tls.v3.Secret",
        name=_CLIENT_CA,
        validation_context={"trusted_ca": {"inline_string": authorities}},
    )


def tls_socket(listener: str, folder: Path, *, client_ca: bool) -> Config:
    """TLS 1.2 or 1.3 for a listener, "grpc" or "http". client_ca: whether clients need a certificate."""
    validation = {
        "validation_context_sds_secret_config": {"name": _CLIENT_CA, "sds_config": watched(client_ca_file(folder))}
    }
    common = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
        "alpn_protocols": _PROTOCOLS[listener],
        "tls_certificate_sds_secret_configs": [{"name": _CERTIFICATE, "sds_config": watched(certificate_file(folder))}],
        **(validation if client_ca else {}),
    }
    return extension(
        "envoy.transport_sockets.tls",
        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        common_tls_context=common,
        require_client_certificate=client_ca,
    )
