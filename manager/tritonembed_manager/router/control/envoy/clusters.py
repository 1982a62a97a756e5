"""Envoy's clusters: the tritonservers, the manager's workers, and both in this order.

A request is tried at a server. If the server breaks, or if no server is READY, the request goes to a worker. The worker
has the manager's failover: budgets, lanes, quarantine, and waiting for a server within the deadline.

The servers are endpoints with IP addresses. Names are looked up repeatedly, because xDS needs numeric addresses.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tritonembed_manager.router.control.envoy.configuration import Config, extension, seconds, typed, watched
from tritonembed_manager.router.data.outliers import FIRST_EJECTION_S, IN_A_ROW, LONGEST_EJECTION_S
from tritonembed_manager.router.interfaces import ServerState, ServerView
from tritonembed_manager.router.link import Sockets
from tritonembed_manager.router.log import warn
from tritonembed_protocol.policies import PolicyName
from tritonembed_protocol.space import SPACE
from tritonembed_protocol.tls import GRPCS

SERVERS, WORKERS, WORKERS_HTTP = "servers", "workers", "workers_http"
SERVERS_THEN_WORKERS = "servers_then_workers"
MARKS = "tritonembed"
"""The metadata namespace of the manager's notes about servers, and of its scripts' notes about a request."""
CONNECT_S = 5.0
_MOST_AT_WORKERS = 1 << 16
"""The most requests at a time. The workers refuse earlier, with a reason."""
_HTTP_IDLE_S = 30.0
"""Less than the workers' own limit, so that Envoy never sends a request on a connection that a worker is closing."""
_STREAM_WINDOW, _CONNECTION_WINDOW = 4 << 20, 64 << 20
"""Bytes that a server may send before Envoy has read them: for an answer, and for all answers of a connection."""
_UNANSWERED_MS = 20_000
_TCP, _TCP_USER_TIMEOUT = 6, 18
_ALL = 1_000_000
"""Percent: a priority counts as healthy while one of its hosts is."""

_POLICIES: dict[PolicyName, Config] = {
    "least_loaded": extension(
        "envoy.load_balancing_policies.least_request",
        "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest",
        selection_method="FULL_SCAN",
    ),
    "round_robin": extension(
        "envoy.load_balancing_policies.round_robin",
        "envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin",
    ),
    "random": extension(
        "envoy.load_balancing_policies.random", "envoy.extensions.load_balancing_policies.random.v3.Random"
    ),
}


@dataclass(frozen=True)
class Endpoint:
    """A server as an endpoint. host: an IP address, because Envoy resolves no names here."""

    host: str
    port: int
    state: ServerState
    space: str = ""
    """The embedding space of its vectors; empty if it is not known."""

    @property
    def address(self) -> str:
        """The address, as Envoy's figures show it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def clusters(
    policy: PolicyName, most_requests: int, endpoints_file: Path, sockets: Sockets, workers: int
) -> list[Config]:
    """All clusters. They never change; the servers are in the endpoints, in a file of their own.

    most_requests: requests at the servers at a time; Envoy refuses more. sockets: those of the workers.
    """
    return [
        _servers(policy, most_requests, endpoints_file),
        {
            **_cluster(WORKERS, _POLICIES["least_loaded"], _MOST_AT_WORKERS),
            "type": "STATIC",
            "load_assignment": _pipes(WORKERS, [sockets.grpc(index) for index in range(workers)]),
            "typed_extension_protocol_options": _http2(),
        },
        {
            **_cluster(WORKERS_HTTP, _POLICIES["least_loaded"], _MOST_AT_WORKERS),
            "type": "STATIC",
            "load_assignment": _pipes(WORKERS_HTTP, [sockets.http(index) for index in range(workers)]),
            "typed_extension_protocol_options": _http1(),
        },
        {
            "name": SERVERS_THEN_WORKERS,
            "connect_timeout": seconds(CONNECT_S),
            "lb_policy": "CLUSTER_PROVIDED",
            "cluster_type": extension(
                "envoy.clusters.aggregate",
                "envoy.extensions.clusters.aggregate.v3.ClusterConfig",
                clusters=[SERVERS, WORKERS],
            ),
            "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
            "circuit_breakers": _circuit_breakers(most_requests),
        },
    ]


def endpoints(servers: Sequence[Endpoint]) -> Config:
    """The servers. Only READY servers get new requests; requests in flight at the others go on."""
    found = [
        {
            "endpoint": {"address": {"socket_address": {"address": server.host, "port_value": server.port}}},
            "health_status": _health(server.state),
            **({"metadata": {"filter_metadata": {MARKS: {SPACE: server.space}}}} if server.space else {}),
        }
        for server in servers
    ]
    return typed(
        "envoy.config.endpoint.v3.ClusterLoadAssignment",
        cluster_name=SERVERS,
        endpoints=[{"priority": 0, "lb_endpoints": found}],
        policy={"overprovisioning_factor": _ALL},
    )


def _health(state: ServerState) -> str:
    if state is ServerState.READY:
        return "HEALTHY"
    return "DRAINING" if state is ServerState.DRAINING else "UNHEALTHY"


def _servers(policy: PolicyName, most_requests: int, endpoints_file: Path) -> Config:
    return {
        **_cluster(SERVERS, _POLICIES[policy], most_requests),
        "type": "EDS",
        "eds_cluster_config": {"eds_config": watched(endpoints_file)},
        "typed_extension_protocol_options": _http2(),
        # A machine that vanished sends nothing, not even a reset.
        "upstream_connection_options": {
            "tcp_keepalive": {"keepalive_time": 10, "keepalive_interval": 5, "keepalive_probes": 2}
        },
        "upstream_bind_config": {
            "socket_options": [
                {
                    "level": _TCP,
                    "name": _TCP_USER_TIMEOUT,
                    "int_value": _UNANSWERED_MS,
                    "state": "STATE_PREBIND",
                }
            ]
        },
        "outlier_detection": {
            "consecutive_5xx": IN_A_ROW,
            "split_external_local_origin_errors": True,
            "consecutive_local_origin_failure": IN_A_ROW,
            "interval": "1s",
            "base_ejection_time": seconds(FIRST_EJECTION_S),
            "max_ejection_time": seconds(LONGEST_EJECTION_S),
            # If all servers are ejected, the workers judge for themselves.
            "max_ejection_percent": 100,
        },
    }


def _cluster(name: str, policy: Config, most_requests: int) -> Config:
    return {
        "name": name,
        "connect_timeout": seconds(CONNECT_S),
        "load_balancing_policy": {"policies": [{"typed_extension_config": policy}]},
        # Never send to all hosts because most of them are unhealthy.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "circuit_breakers": _circuit_breakers(most_requests),
    }


def _circuit_breakers(most_requests: int) -> Config:
    limits = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
    return {"thresholds": [{"priority": "DEFAULT", **dict.fromkeys(limits, most_requests)}]}


def _pipes(name: str, paths: Sequence[Path]) -> Config:
    hosts = [{"endpoint": {"address": {"pipe": {"path": str(path)}}}} for path in paths]
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": hosts}], "policy": {"overprovisioning_factor": _ALL}}


_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def _http2() -> Config:
    protocol = {
        "initial_stream_window_size": _STREAM_WINDOW,
        "initial_connection_window_size": _CONNECTION_WINDOW,
        "max_concurrent_streams": _MOST_AT_WORKERS,
    }
    return {_HTTP_OPTIONS: typed(_HTTP_OPTIONS, explicit_http_config={"http2_protocol_options": protocol})}


def _http1() -> Config:
    return {
        _HTTP_OPTIONS: typed(
            _HTTP_OPTIONS,
            common_http_protocol_options={"idle_timeout": seconds(_HTTP_IDLE_S)},
            explicit_http_config={"http_protocol_options": {}},
        )
    }


_RESOLVE_EVERY_S = 5.0


class EndpointList:
    """who: can't use servers with grpcs://, in a warning. changed: called with the servers whenever they change."""

    def __init__(self, who: str, changed: Callable[[Sequence[tuple[ServerView, Endpoint]]], None]) -> None:
        self._who = who
        self._report = changed
        self._views: Sequence[ServerView] = ()
        self._draining = False
        self._changed = asyncio.Event()
        self._unreachable: set[str] = set()

    def update(self, views: Sequence[ServerView]) -> None:
        """Take over other servers or states."""
        self._views = views
        self._changed.set()

    def drain(self) -> None:
        """READY servers are DRAINING from now on."""
        self._draining = True
        self._changed.set()

    async def run(self) -> None:
        """Keep the list up to date until cancelled."""
        while True:
            self._changed.clear()
            self._report(await self._endpoints())
            with_names = any(_ip(_host_port(view.address)[0]) is None for view in self._reachable())
            try:
                await asyncio.wait_for(self._changed.wait(), _RESOLVE_EVERY_S if with_names else None)
            except asyncio.TimeoutError:
                continue

    async def _endpoints(self) -> list[tuple[ServerView, Endpoint]]:
        found: dict[tuple[str, str], tuple[ServerView, Endpoint]] = {}
        for view in self._reachable():
            host, port = _host_port(view.address)
            address = _ip(host) or await _resolve(host, port)
            if address is None:
                continue
            draining = self._draining and view.state is ServerState.READY
            endpoint = Endpoint(address, port, ServerState.DRAINING if draining else view.state, view.space)
            found.setdefault((view.ensemble, endpoint.address), (view, endpoint))
        return list(found.values())

    def _reachable(self) -> list[ServerView]:
        encrypted = {view.id for view in self._views if view.address.startswith(GRPCS)}
        for id in encrypted - self._unreachable:
            warn(
                "envoy_without_server", f"{self._who}: no way to servers with grpcs://: only workers use it", server=id
            )
        self._unreachable = encrypted
        return [view for view in self._views if view.id not in encrypted]


def _host_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _ip(host: str) -> str | None:
    """The address if it is a number, in the form in which Envoy shows it."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return None


async def _resolve(host: str, port: int) -> str | None:
    """An address of a name, preferably of IPv4; None if it has no address now."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return None
    return str(min(found, key=lambda one: one[0] != socket.AF_INET)[4][0]) if found else None
