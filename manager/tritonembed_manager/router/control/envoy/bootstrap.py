"""Envoy's bootstrap: where its other configuration is, its administration, and the limits of its memory."""

from pathlib import Path

from tritonembed_manager.router.control.envoy.clusters import watched
from tritonembed_manager.router.control.envoy.protobuf_json import Config, extension
from tritonembed_manager.router.sockets import Sockets

MOST_MEMORY = 1536 << 20
"""Bytes of Envoy's heap; as much as a worker may hold."""
_TRACKED_FROM = 20
"""Streams that hold 2^20 bytes or more can be given up for lack of memory."""
_SHRINK, _GIVE_UP_FROM, _REFUSE = 0.75, 0.8, 0.95
_SPARE_CONNECTIONS = 512


def bootstrap(folder: Path, most_descriptors: int) -> Config:
    """The bootstrap. folder: has the files that Envoy watches. most_descriptors: that Envoy may open."""
    return {
        "node": {"id": "tritonembed", "cluster": "tritonembed"},
        # On a socket that no other user and no other machine can reach.
        "admin": {"address": {"pipe": {"path": str(Sockets(folder).admin), "mode": 0o600}}},
        "dynamic_resources": {
            "lds_config": watched(folder / "listeners.json"),
            "cds_config": watched(folder / "clusters.json"),
        },
        "overload_manager": _overload_manager(most_descriptors),
        # Nothing but the files and the options of the manager configures Envoy.
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
