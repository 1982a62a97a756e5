"""Envoy's configuration: its form, the files that Envoy watches, its bootstrap, and TLS.

The configuration is JSON: objects with the name of their protobuf type. clusters.py and listeners.py have the rest of
it. The certificate and its key are in a file of the private folder, which is replaced when they change.
"""

import json
import os
from pathlib import Path
from typing import Any

from tritonembed_manager.router.link import Sockets
from tritonembed_manager.router.tls import Pems

Config = dict[str, Any]
"""A protobuf message in its JSON form."""


def typed(type_name: str, /, **fields: Any) -> Config:
    """A message of a type, such as envoy.config.cluster.v3.Cluster, where Envoy accepts any type."""
    return {"@type": f"type.googleapis.com/{type_name}", **fields}


def extension(name: str, type_name: str, /, **fields: Any) -> Config:
    """An extension of Envoy, with its configuration."""
    return {"name": name, "typed_config": typed(type_name, **fields)}


def seconds(value: float) -> str:
    """A duration."""
    return f"{value:.3f}s"


def watched(file: Path) -> Config:
    """Resources in a file that is replaced whenever they change."""
    return {"path_config_source": {"path": str(file)}}


class XdsFiles:
    """Files in a folder of this user (0700). Their versions grow with each change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._written: dict[str, list[Config]] = {}
        self._version = 0

    def path(self, kind: str) -> Path:
        """The file of a kind of resources."""
        return self.folder / f"{kind}.json"

    def write(self, kind: str, *resources: Config) -> bool:
        """Replace all resources of a kind. Returns whether they have changed."""
        if self._written.get(kind) == list(resources):
            return False
        self._version += 1
        self.write_plain(kind, {"version_info": str(self._version), "resources": list(resources)})
        self._written[kind] = list(resources)
        return True

    def write_plain(self, name: str, content: Config) -> Path:
        """Write a file that is not a list of resources. Returns its path."""
        path, new = self.path(name), self.folder / f".{name}.new"
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(content, file)
        new.replace(path)
        return path


MOST_MEMORY = 1536 << 20
"""Bytes of Envoy's heap; as much as a worker may hold."""
_TRACKED_FROM = 20
"""Streams that hold 2^20 bytes or more may be reset for lack of memory."""
_SHRINK, _GIVE_UP_FROM, _REFUSE = 0.75, 0.8, 0.95
_SPARE_CONNECTIONS = 512


def bootstrap(folder: Path, most_descriptors: int) -> Config:
    """The bootstrap. folder: of the files that Envoy watches. most_descriptors: the most that Envoy may open."""
    return {
        "node": {"id": "tritonembed", "cluster": "tritonembed"},
        # The socket can't be reached by other users and machines.
        "admin": {"address": {"pipe": {"path": str(Sockets(folder).admin), "mode": 0o600}}},
        "dynamic_resources": {
            "lds_config": watched(folder / "listeners.json"),
            "cds_config": watched(folder / "clusters.json"),
        },
        "overload_manager": _overload_manager(most_descriptors),
        # Only the manager's files and options configure Envoy.
        "layered_runtime": {"layers": [{"name": "static", "static_layer": {}}]},
    }


def _overload_manager(most_descriptors: int) -> Config:
    heap = "envoy.resource_monitors.fixed_heap"
    connections = "envoy.resource_monitors.global_downstream_max_connections"

    def above(value: float) -> Config:
        return {"name": heap, "threshold": {"value": value}}

    return {
        "refresh_interval": "0.05s",
        "buffer_factory_config": {"minimum_account_to_track_power_of_two": _TRACKED_FROM},
        "resource_monitors": [
            extension(
                heap,
                "envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig",
                max_heap_size_bytes=MOST_MEMORY,
            ),
            extension(
                connections,
                "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                max_active_downstream_connections=max(_SPARE_CONNECTIONS, most_descriptors // 2 - _SPARE_CONNECTIONS),
            ),
        ],
        "actions": [
            {"name": "envoy.overload_actions.shrink_heap", "triggers": [above(_SHRINK)]},
            {
                "name": "envoy.overload_actions.reset_high_memory_stream",
                "triggers": [
                    {
                        "name": heap,
                        "scaled": {"scaling_threshold": _GIVE_UP_FROM, "saturation_threshold": _REFUSE},
                    }
                ],
            },
            {"name": "envoy.overload_actions.stop_accepting_requests", "triggers": [above(_REFUSE)]},
        ],
    }


_CERTIFICATE, _CLIENT_CA = "certificate", "client_ca"
_PROTOCOLS = {"grpc": ["h2"], "http": ["http/1.1"]}


def certificate_file(folder: Path) -> Path:
    """A reference to the certificate, for Envoy."""
    return folder / "certificate.json"


def client_ca_file(folder: Path) -> Path:
    """A reference to the authorities of clients, for Envoy."""
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
