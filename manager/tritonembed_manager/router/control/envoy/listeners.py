"""Envoy's listeners, which are the manager's gRPC port and HTTP port, and their routes.

On the gRPC port, plain inferences go to the servers, and everything else to the manager's workers. A script
(plain_requests.lua) reads each inference and marks the plain ones. An inference without the mark goes to the workers,
and so does an inference on which the script fails.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonembed_manager.router.control.envoy.clusters import MARKS, SERVERS_THEN_WORKERS, WORKERS, WORKERS_HTTP
from tritonembed_manager.router.control.envoy.configuration import (
    Config,
    extension,
    seconds,
    tls_socket,
    typed,
    watched,
)
from tritonembed_manager.router.control.envoy.tenants import HELD, UNFINISHED, EnvoyTenants, door_script
from tritonembed_manager.router.data.admission import MAX_REQUEST
from tritonembed_manager.router.data.request import SECRETS
from tritonembed_manager.router.data.upstream import SERVICE
from tritonembed_protocol.served import FIRST
from tritonembed_protocol.space import HEADER, SPACE

_BUFFER = 1 << 20
_STREAM_WINDOW, _CONNECTION_WINDOW = 1 << 20, 32 << 20
_MOST_STREAMS = 1 << 16
_PING_EVERY_S, _PING_TIMEOUT_S = 60.0, 20.0
_CONNECTION_IDLE_S = 3600.0
_HANDSHAKE_S = 10.0
_RESOURCE_EXHAUSTED, _DEADLINE_EXCEEDED, _UNAVAILABLE = "8", "4", "14"

_REQUEST_TIMEOUT = 408
_GRPC_REFUSALS = (
    (("UO", "OM"), _RESOURCE_EXHAUSTED, "overloaded: too many requests at a time; try again"),
    (("UT", "UMSDR"), _DEADLINE_EXCEEDED, "the deadline passed"),
    (("UF", "UH", "UR", "UC", "LR", "NC", "URX", "UPE"), _UNAVAILABLE, "no server could answer the request"),
)
"""Response flags of Envoy, and the gRPC status and message for them. Envoy's own messages have addresses."""


@dataclass(frozen=True)
class ListenerSettings:
    """host, port, http_port: where to listen. header_timeout: seconds for the head of an HTTP request.

    tls: whether the ports speak TLS; if so, client_ca: whether clients need a certificate. access_log: a file.
    tenants: whether requests are charged to tenants.
    """

    host: str
    port: int
    http_port: int
    header_timeout: float
    tls: bool = False
    client_ca: bool = False
    access_log: Path | None = None
    tenants: bool = False


def listeners(settings: ListenerSettings, folder: Path) -> list[Config]:
    """Both listeners. folder: of the files that Envoy watches."""
    grpc = typed(
        _MANAGER,
        **_common("grpc", settings),
        codec_type="HTTP2",
        rds={"route_config_name": GRPC_ROUTES, "config_source": watched(folder / "routes.json")},
        http2_protocol_options={
            "max_concurrent_streams": _MOST_STREAMS,
            "initial_stream_window_size": _STREAM_WINDOW,
            "initial_connection_window_size": _CONNECTION_WINDOW,
            "connection_keepalive": {"interval": seconds(_PING_EVERY_S), "timeout": seconds(_PING_TIMEOUT_S)},
        },
        http_filters=[
            extension(LUA, "envoy.extensions.filters.http.lua.v3.Lua"),
            _router(),
        ],
        local_reply_config={
            "mappers": [
                _grpc_refusal(_has_code(_REQUEST_TIMEOUT), _DEADLINE_EXCEEDED, "the deadline passed"),
                *(_grpc_refusal(_has_flag(flags), code, message) for flags, code, message in _GRPC_REFUSALS),
            ]
        },
    )
    http = typed(
        _MANAGER,
        **_common("http", settings),
        codec_type="HTTP1",
        route_config={key: value for key, value in http_routes().items() if key != "@type"},
        http_protocol_options={"accept_http_10": True, "default_host_for_http_10": "localhost"},
        request_headers_timeout=seconds(settings.header_timeout),
        http_filters=[_router()],
        local_reply_config={
            "body_format": {
                "json_format": {"error": "the manager can't answer now (%RESPONSE_CODE%, %RESPONSE_FLAGS%)"},
                "content_type": "application/json",
            }
        },
    )
    return [
        _listener("grpc", settings, settings.port, grpc, folder),
        _listener("http", settings, settings.http_port, http, folder),
    ]


_MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"


def _common(name: str, settings: ListenerSettings) -> Config:
    return {
        "stat_prefix": name,
        "generate_request_id": False,
        "use_remote_address": True,
        "skip_xff_append": True,
        # Unlimited here: streams such as a health watch have no end. The routes and the workers have limits.
        "stream_idle_timeout": "0s",
        "common_http_protocol_options": {"idle_timeout": seconds(_CONNECTION_IDLE_S)},
        "server_header_transformation": "PASS_THROUGH",
        "early_header_mutation_extensions": [_without_orders()],
        "access_log": [
            *([_access_log(settings.access_log)] if settings.access_log else []),
            *([_unfinished_requests()] if settings.tenants else []),
        ],
    }


def _without_orders() -> Config:
    """Removes headers with which a client could change Envoy's timeouts and retries, and the scripts' headers."""
    return extension(
        "envoy.http.early_header_mutation.header_mutation",
        "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
        mutations=[{"remove_on_match": {"key_matcher": {"prefix": prefix}}} for prefix in ("x-envoy-", OURS)],
    )


def _router() -> Config:
    return extension(
        "envoy.filters.http.router",
        "envoy.extensions.filters.http.router.v3.Router",
        suppress_envoy_headers=True,
    )


def _has_flag(flags: tuple[str, ...]) -> Config:
    return {"response_flag_filter": {"flags": list(flags)}}


def _has_code(code: int) -> Config:
    return {"status_code_filter": {"comparison": {"value": {"default_value": code, "runtime_key": "unused"}}}}


def _grpc_refusal(of: Config, code: str, message: str) -> Config:
    status = {"header": {"key": "grpc-status", "value": code}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
    return {
        "filter": of,
        "headers_to_add": [status],
        # Envoy makes this the gRPC message.
        "body": {"inline_string": message},
    }


def _access_log(path: Path) -> Config:
    """A line of JSON per request. It has no text of a request, no query, and no metadata."""
    fields = {
        "time": "%START_TIME%",
        "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
        "method": "%REQ(:METHOD)%",
        "path": "%PATH(NQ)%",
        "status": "%RESPONSE_CODE%",
        "grpc_status": "%GRPC_STATUS%",
        "flags": "%RESPONSE_FLAGS%",
        "duration_ms": "%DURATION%",
        "bytes_received": "%BYTES_RECEIVED%",
        "bytes_sent": "%BYTES_SENT%",
        "server": "%UPSTREAM_HOST%",
        "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    }
    return extension(
        "envoy.access_loggers.file",
        "envoy.extensions.access_loggers.file.v3.FileAccessLog",
        path=str(path),
        log_format={"json_format": fields},
    )


def _unfinished_requests() -> Config:
    """A line for each request that ended while the script held it, because its client went away or Envoy gave it up.

    The script handles only answers.
    """
    held = {"filter": MARKS, "path": [{"key": HELD}], "value": {"string_match": {"contains": " "}}}
    line = f"{UNFINISHED}%DYNAMIC_METADATA({MARKS}:{HELD})%\n"
    return {
        **extension(
            "envoy.access_loggers.stderr",
            "envoy.extensions.access_loggers.stream.v3.StderrAccessLog",
            log_format={"text_format_source": {"inline_string": line}},
        ),
        "filter": {"metadata_filter": {"matcher": held, "match_if_key_not_found": {"value": False}}},
    }


def _listener(name: str, settings: ListenerSettings, port: int, manager: Config, folder: Path) -> Config:
    chain = {
        "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}],
        "transport_socket_connect_timeout": seconds(_HANDSHAKE_S),
        **({"transport_socket": tls_socket(name, folder, client_ca=settings.client_ca)} if settings.tls else {}),
    }
    return {
        "name": name,
        "address": {"socket_address": {"address": settings.host, "port_value": port}},
        "per_connection_buffer_limit_bytes": _BUFFER,
        "filter_chains": [chain],
        # Clients of gRPC open few connections and keep them, so each thread must get its share of them.
        "connection_balance_config": {"exact_balance": {}},
    }


GRPC_ROUTES = "grpc"
LUA = "envoy.filters.http.lua"
MOST_BUFFERED = MAX_REQUEST + (1 << 20)
"""Bytes of an inference that Envoy holds until its route is known. A larger inference can't be valid."""
_INFER = f"/{SERVICE}/ModelInfer"
_SCRIPT = Path(__file__).with_name("plain_requests.lua")
OURS = "x-tritonembed-"
"""The prefix of the scripts' headers. Envoy removes such headers from clients' requests."""
_PLAIN = f"{OURS}plain"
_SAFE_RETRIES = "connect-failure,refused-stream"
"""Failures before a worker or a server received the request. Any such request may go to another."""
_RETRIES = f"{_SAFE_RETRIES},reset,cancelled,unavailable,retriable-headers"
"""The rules of tritonembed_protocol.status.classify. If a queue is full, the worker answers with a refusal."""
_DEAD_STUB = "Stub process"
_SPACE = {
    "header": {"key": HEADER, "value": f"%UPSTREAM_METADATA({MARKS}:{SPACE})%"},
    "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
}
"""The embedding space of the server that answered, by its last check."""
_MOST_RETRIES = 2
"""The first retry goes to a worker. The second is for a worker that dies."""


def grpc_routes(
    forward_timeout: float, max_bytes: int, quarantined_sizes: Iterable[int], tenants: EnvoyTenants | None = None
) -> Config:
    """The routes of the gRPC port; they change with the quarantine and the tenants.

    forward_timeout: seconds for an inference without `grpc-timeout`. max_bytes: the most of a request that may go to a
    server directly. quarantined_sizes: the sizes of requests in quarantine.
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
    mark = {"name": _PLAIN, "present_match": True}
    buffered = {"request_body_buffer_limit": MOST_BUFFERED}
    without_space = {"name": HEADER, "present_match": True, "invert_match": True}
    infer: list[Config] = [
        {
            "match": {"path": _INFER, "headers": [mark, without_space]},
            "route": to_servers,
            # Servers see no keys. A worker that gets the request afterwards knows its tenant from another header.
            "request_headers_to_remove": [_PLAIN, *SECRETS],
            "response_headers_to_add": [_SPACE],
            **buffered,
        },
        {"match": {"path": _INFER}, "route": {**_to(WORKERS), "max_stream_duration": duration}, **buffered},
    ]
    others = {"match": {"prefix": "/"}, "route": _to(WORKERS), **_script(disabled=True)}
    # Both routes of an inference have the script: its answer may belong to another route than the request.
    source = {"inline_string": lua_script(max_bytes, quarantined_sizes, tenants)}
    return _configuration(GRPC_ROUTES, [*infer, others], **_script(source_code=source))


def _script(**settings: Any) -> Config:
    return {"typed_per_filter_config": {LUA: typed("envoy.extensions.filters.http.lua.v3.LuaPerRoute", **settings)}}


def http_routes() -> Config:
    """The routes of the HTTP port: all requests go to the workers, which also enforce the timeouts."""
    return _configuration("http", [{"match": {"prefix": "/"}, "route": _to(WORKERS_HTTP)}])


def lua_script(max_bytes: int, quarantined_sizes: Iterable[int], tenants: EnvoyTenants | None = None) -> str:
    """The scripts with their settings."""
    sizes = ", ".join(f"[{size}] = true" for size in sorted(set(quarantined_sizes)))
    names = f'local PLAIN, MODEL, SPACE = "{_PLAIN}", "{FIRST}", "{SPACE}"\n'
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
    # Envoy adds these headers; a server would get them as metadata.
    added = ["x-envoy-external-address", "x-forwarded-proto"]
    host = {"name": name, "domains": ["*"], "routes": routes, "request_headers_to_remove": added, **more}
    return typed("envoy.config.route.v3.RouteConfiguration", name=name, virtual_hosts=[host])
