"""Envoy's routes on the gRPC port: plain inferences to the servers, and everything else to the manager's workers.

A script (plain_requests.lua) reads each inference and marks the plain ones. An inference without the mark goes to the
workers, and so does one that the script fails on.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tritonembed_manager.router.control.envoy.clusters import SERVERS_THEN_WORKERS, WORKERS, WORKERS_HTTP
from tritonembed_manager.router.control.envoy.protobuf_json import Config, extension, seconds, typed
from tritonembed_manager.router.control.envoy.tenants import EnvoyTenants, door_script
from tritonembed_manager.router.data.admission import MAX_REQUEST
from tritonembed_manager.router.data.request import SECRETS
from tritonembed_manager.router.data.upstream import SERVICE
from tritonembed_protocol.served import FIRST
from tritonembed_protocol.space import HEADER, SPACE

GRPC_ROUTES = "grpc"
LUA = "envoy.filters.http.lua"
MOST_BUFFERED = MAX_REQUEST + (1 << 20)
"""Bytes of an inference that Envoy holds until it knows where it goes. A larger one can't be valid."""
_INFER = f"/{SERVICE}/ModelInfer"
_SCRIPT = Path(__file__).with_name("plain_requests.lua")
MARKS = "tritonembed"
"""The namespace of what the scripts note about a request."""
_MARK = "plain"
_SAFE_RETRIES = "connect-failure,refused-stream"
"""Failures before a worker or a server got the request, which therefore may go to another one, whatever it is."""
_RETRIES = f"{_SAFE_RETRIES},reset,cancelled,unavailable,retriable-headers"
"""As tritonembed_protocol.status.classify. After a full queue, the worker answers with the manager's own refusal."""
_DEAD_STUB = "Stub process"
_MOST_RETRIES = 2
"""The first retry goes to a worker. The second is for a worker that dies."""


def grpc_routes(
    forward_timeout: float, max_bytes: int, quarantined_sizes: Iterable[int], tenants: EnvoyTenants | None = None
) -> Config:
    """The routes of the gRPC port; they change with the quarantine and the tenants.

    forward_timeout: seconds for an inference without `grpc-timeout`. max_bytes: of a request that may go to a server
    directly. quarantined_sizes: bytes that digests in quarantine were made of.
    """
    duration = {"max_stream_duration": seconds(forward_timeout), "grpc_timeout_header_max": "0s"}
    to_servers = {
        "cluster": SERVERS_THEN_WORKERS,
        "timeout": "0s",
        "max_stream_duration": duration,
        "retry_policy": {
            "retry_on": _RETRIES,
            "num_retries": _MOST_RETRIES,
            "retriable_headers": [{"name": "grpc-message", "string_match": {"contains": _DEAD_STUB}}],
            "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.005s"},
            "retry_priority": extension(
                "envoy.retry_priorities.previous_priorities",
                "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
                update_frequency=1,
            ),
            **_another_host(),
        },
    }
    mark = {"filter": MARKS, "path": [{"key": _MARK}], "value": {"bool_match": True}}
    buffered = {"request_body_buffer_limit": MOST_BUFFERED}
    without_space = {"name": HEADER, "present_match": True, "invert_match": True}
    infer: list[Config] = [
        {
            "match": {"path": _INFER, "dynamic_metadata": [mark], "headers": [without_space]},
            "route": to_servers,
            # Servers see no keys. A worker that gets the request afterwards knows its tenant from another header.
            "request_headers_to_remove": list(SECRETS),
            **buffered,
        },
        {"match": {"path": _INFER}, "route": {**_to(WORKERS), "max_stream_duration": duration}, **buffered},
    ]
    others = {"match": {"prefix": "/"}, "route": _to(WORKERS), **_script(disabled=True)}
    # One script for both routes of an inference: the route of its answer is another one than it came with.
    source = {"inline_string": lua_script(max_bytes, quarantined_sizes, tenants)}
    return _configuration(GRPC_ROUTES, [*infer, others], **_script(source_code=source))


def _script(**settings: Any) -> Config:
    return {"typed_per_filter_config": {LUA: typed("envoy.extensions.filters.http.lua.v3.LuaPerRoute", **settings)}}


def http_routes() -> Config:
    """The routes of the HTTP port: everything goes to the workers, which also enforce the times."""
    return _configuration("http", [{"match": {"prefix": "/"}, "route": _to(WORKERS_HTTP)}])


def lua_script(max_bytes: int, quarantined_sizes: Iterable[int], tenants: EnvoyTenants | None = None) -> str:
    """The scripts with their settings."""
    sizes = ", ".join(f"[{size}] = true" for size in sorted(set(quarantined_sizes)))
    names = f'local MODEL, SPACE = "{FIRST}", "{SPACE}"\n'
    limits = f"local MAX_BYTES, SIZES = {max_bytes + _FRAME_BYTES}, {{{sizes}}}\n"
    door = door_script(tenants) if tenants is not None else ""
    return names + limits + door + _SCRIPT.read_text()


_FRAME_BYTES = 5
"""gRPC's flag and length before a message."""


def _to(cluster: str) -> Config:
    retries = {"retry_on": _SAFE_RETRIES, "num_retries": _MOST_RETRIES, **_another_host()}
    return {"cluster": cluster, "timeout": "0s", "retry_policy": retries}


def _another_host() -> Config:
    predicate = extension(
        "envoy.retry_host_predicates.previous_hosts",
        "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
    )
    return {"retry_host_predicate": [predicate], "host_selection_retry_max_attempts": 5}


def _configuration(name: str, routes: list[Config], **more: Any) -> Config:
    # Envoy adds them; a server would get them as metadata.
    added = ["x-envoy-external-address", "x-forwarded-proto"]
    host = {"name": name, "domains": ["*"], "routes": routes, "request_headers_to_remove": added, **more}
    return typed("envoy.config.route.v3.RouteConfiguration", name=name, virtual_hosts=[host])
