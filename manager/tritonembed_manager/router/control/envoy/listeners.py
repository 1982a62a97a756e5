"""Envoy's listeners: the manager's gRPC port and HTTP port."""

from dataclasses import dataclass
from pathlib import Path

from tritonembed_manager.router.control.envoy.clusters import watched
from tritonembed_manager.router.control.envoy.protobuf_json import Config, extension, seconds, typed
from tritonembed_manager.router.control.envoy.routes import GRPC_ROUTES, LUA, MARKS, http_routes
from tritonembed_manager.router.control.envoy.secrets import tls_socket
from tritonembed_manager.router.control.envoy.tenants import UNFINISHED
from tritonembed_manager.router.data.tenants import ADMITTED

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
    """Removes the headers with which a client could change Envoy's timeouts and retries, or its tenant."""
    return extension(
        "envoy.http.early_header_mutation.header_mutation",
        "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
        mutations=[{"remove_on_match": {"key_matcher": {"prefix": "x-envoy-"}}}, {"remove": ADMITTED}],
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
        # Envoy makes it the gRPC message.
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
    """A line for each request that ended while the script held it: its client went away, or Envoy gave it up.

    The script only sees answers.
    """
    held = {"filter": MARKS, "path": [{"key": "held"}], "value": {"bool_match": True}}
    line = f"{UNFINISHED}%DYNAMIC_METADATA({MARKS}:slot)%\n"
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
        # Clients of gRPC open few connections and keep them, so each thread has to get its share.
        "connection_balance_config": {"exact_balance": {}},
    }
