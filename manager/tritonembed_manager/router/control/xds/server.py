"""The port of --xds-port: the servers as xDS resources (v3), for the user's own Envoy or gRPC clients.

Each model has a cluster and a listener with the name of Triton's model, such as `embedding`. gRPC clients reach the
listener as xds:///embedding. Envoys choose the policy of --load-balancing; gRPC's clients know only round_robin.

The resources are sent as an aggregated stream (ADS, state of the world). A client names the resources that it wants,
and acknowledges each answer before the next change of that type is sent.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as Packed  # type: ignore[import-untyped]
from google.protobuf.duration_pb2 import Duration  # type: ignore[import-untyped]
from google.protobuf.message import Message  # type: ignore[import-untyped]
from google.protobuf.wrappers_pb2 import UInt32Value  # type: ignore[import-untyped]

from tritonembed_manager.errors import StartError
from tritonembed_manager.router.control.envoy.clusters import CONNECT_S, Endpoint, EndpointList
from tritonembed_manager.router.control.xds.xds_pb import xds_pb2 as pb
from tritonembed_manager.router.interfaces import ServerState, ServerView
from tritonembed_manager.router.log import warn
from tritonembed_manager.router.tls import Pems, ServerTls
from tritonembed_protocol.policies import PolicyName

_TYPES: Final = "type.googleapis.com/"
LISTENER, CLUSTER, ENDPOINTS = (
    f"{_TYPES}envoy.config.{kind}"
    for kind in ("listener.v3.Listener", "cluster.v3.Cluster", "endpoint.v3.ClusterLoadAssignment")
)
_POLICIES = f"{_TYPES}envoy.extensions.load_balancing_policies."
_ROUND_ROBIN = "round_robin.v3.RoundRobin"
_OF_ENVOY: dict[PolicyName, str] = {
    "least_loaded": "least_request.v3.LeastRequest",
    "round_robin": _ROUND_ROBIN,
    "random": "random.v3.Random",
}
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_EDS, _V3 = 3, 2
_HEALTHY, _UNHEALTHY, _DRAINING = 1, 2, 3

Resources = dict[str, Packed]
"""Resources by their names."""


def resources(policy: PolicyName, servers: Mapping[str, Sequence[Endpoint]]) -> dict[str, Resources]:
    """All resources, by type URL. servers: by Triton's name of their model."""
    return {
        LISTENER: {model: _packed(LISTENER, _listener(model)) for model in servers},
        CLUSTER: {model: _packed(CLUSTER, _cluster(model, policy)) for model in servers},
        ENDPOINTS: {model: _packed(ENDPOINTS, _endpoints(model, found)) for model, found in servers.items()},
    }


def _listener(model: str) -> Message:
    """The listener for gRPC clients: all methods go to the cluster."""
    route = pb.Route(match=pb.RouteMatch(prefix=""), route=pb.RouteAction(cluster=model))
    host = pb.VirtualHost(name=model, domains=["*"], routes=[route])
    router = Packed(type_url=f"{_TYPES}envoy.extensions.filters.http.router.v3.Router")
    manager = pb.HttpConnectionManager(
        route_config=pb.RouteConfiguration(name=model, virtual_hosts=[host]),
        http_filters=[pb.HttpFilter(name="envoy.filters.http.router", typed_config=router)],
    )
    kind = f"{_TYPES}envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    return pb.Listener(name=model, api_listener=pb.ApiListener(api_listener=_packed(kind, manager)))


def _cluster(model: str, policy: PolicyName) -> Message:
    http2 = pb.HttpProtocolOptions.ExplicitHttpConfig(http2_protocol_options=pb.HttpProtocolOptions.Http2())
    options = pb.HttpProtocolOptions(explicit_http_config=http2)
    # A client uses the first policy that it knows.
    names = dict.fromkeys((_OF_ENVOY[policy], _ROUND_ROBIN))
    return pb.Cluster(
        name=model,
        type=_EDS,
        eds_cluster_config=pb.EdsClusterConfig(
            eds_config=pb.ConfigSource(ads=pb.AggregatedConfigSource(), resource_api_version=_V3)
        ),
        connect_timeout=Duration(seconds=int(CONNECT_S)),
        typed_extension_protocol_options={_HTTP_OPTIONS: _packed(f"{_TYPES}{_HTTP_OPTIONS}", options)},
        load_balancing_policy=pb.LoadBalancingPolicy(policies=[_policy(name) for name in names]),
    )


def _policy(name: str) -> Any:
    config = pb.TypedExtensionConfig(name=name.partition(".")[0], typed_config=Packed(type_url=f"{_POLICIES}{name}"))
    return pb.LoadBalancingPolicy.Policy(typed_extension_config=config)


def _endpoints(model: str, servers: Sequence[Endpoint]) -> Message:
    """Only READY servers get new requests."""
    # gRPC ignores endpoints without a locality that has a weight.
    group = pb.LocalityLbEndpoints(
        locality=pb.Locality(region="tritonembed"),
        load_balancing_weight=UInt32Value(value=1),
        lb_endpoints=[_endpoint(server) for server in servers],
    )
    return pb.ClusterLoadAssignment(cluster_name=model, endpoints=[group] if servers else [])


def _endpoint(server: Endpoint) -> Any:
    address = pb.Address(socket_address=pb.SocketAddress(address=server.host, port_value=server.port))
    health = {ServerState.READY: _HEALTHY, ServerState.DRAINING: _DRAINING}.get(server.state, _UNHEALTHY)
    return pb.LbEndpoint(endpoint=pb.Endpoint(address=address), health_status=health)


def _packed(type_url: str, message: Message) -> Packed:
    # Deterministic, so that equal resources have equal bytes.
    return Packed(type_url=type_url, value=message.SerializeToString(deterministic=True))


SERVICE, METHOD = "envoy.service.discovery.v3.AggregatedDiscoveryService", "StreamAggregatedResources"
OPTION = "--xds-port"
_MOST_STREAMS, _MOST_BYTES = 1000, 1 << 20
_OPTIONS = (("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", _MOST_BYTES))


@dataclass
class _Subscription:
    """A client's subscription to one type of resources. names: empty for all.

    sent: None if the resources have to be sent in any case.
    """

    names: frozenset[str]
    sent: Resources | None = None
    nonce: str = ""
    is_acknowledged: bool = True

    def choose(self, kind: str, found: Resources) -> Resources:
        """Those of the resources that the client wants."""
        if not self.names:
            # A gRPC client names its listener. An Envoy, which asks for all listeners, has no use for them.
            return {} if kind == LISTENER else found
        return {name: resource for name, resource in found.items() if name in self.names}


@dataclass(eq=False)
class _Client:
    """One stream."""

    news: asyncio.Event = field(default_factory=asyncio.Event)
    subscriptions: dict[str, _Subscription] = field(default_factory=dict)


class XdsServer:
    """host, port: where to listen. models: Triton's names. pems: for TLS; None for plain text."""

    def __init__(self, host: str, port: int, policy: PolicyName, models: Iterable[str], pems: Pems | None) -> None:
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._policy = policy
        self._models = tuple(models)
        self._tls = ServerTls(pems) if pems is not None else None
        self._clients: set[_Client] = set()
        self._sent = 0
        self._servers = EndpointList("clients of xDS", self._take)
        self._now = resources(policy, dict.fromkeys(self._models, ()))

    def update(self, views: Sequence[ServerView]) -> None:
        """Give clients the servers and their states."""
        self._servers.update(views)

    def drain(self) -> None:
        """Let clients send no new requests to the servers."""
        self._servers.drain()

    def set_tls(self, pems: Pems) -> None:
        """Use another certificate for new connections. Raises ValueError."""
        if self._tls is not None:
            self._tls.update(pems)

    async def run(self) -> None:
        """Serve until cancelled. Raises StartError if the port is taken."""
        server = grpc.aio.server(options=_OPTIONS)
        handler = grpc.stream_stream_rpc_method_handler(
            self._stream, pb.DiscoveryRequest.FromString, pb.DiscoveryResponse.SerializeToString
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
        try:
            bound = (
                server.add_insecure_port(self._address)
                if self._tls is None
                else server.add_secure_port(self._address, self._tls.credentials)
            )
        except RuntimeError:
            bound = 0
        if not bound:
            raise StartError(f"{OPTION}: cannot listen on {self._address}")
        await server.start()
        try:
            await self._servers.run()
        finally:
            await server.stop(None)

    def _take(self, found: Sequence[tuple[ServerView, Endpoint]]) -> None:
        servers: dict[str, list[Endpoint]] = {model: [] for model in self._models}
        for view, endpoint in found:
            servers.setdefault(view.ensemble, []).append(endpoint)
        self._now = resources(self._policy, servers)
        for client in self._clients:
            client.news.set()

    async def _stream(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        if len(self._clients) >= _MOST_STREAMS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{_MOST_STREAMS} clients of xDS are connected")
        client = _Client()
        reading = asyncio.ensure_future(self._read(requests, client))
        self._clients.add(client)
        try:
            while not reading.done():
                client.news.clear()
                for answer in self._answers(client):
                    yield answer
                await client.news.wait()
        finally:
            self._clients.discard(client)
            reading.cancel()

    async def _read(self, requests: AsyncIterator[Any], client: _Client) -> None:
        try:
            async for request in requests:
                self._receive(request, client)
                client.news.set()
        finally:
            client.news.set()

    def _receive(self, request: Any, client: _Client) -> None:
        kind, names = request.type_url, frozenset(request.resource_names)
        if kind not in self._now:
            return
        subscription = client.subscriptions.get(kind)
        if subscription is None:
            client.subscriptions[kind] = _Subscription(names)
            return
        if request.response_nonce and request.response_nonce != subscription.nonce:
            # The client answers an older message.
            return
        subscription.is_acknowledged = True
        if request.HasField("error_detail"):
            warn("xds_refused", f"a client of xDS refused {kind.rpartition('.')[2]} resources")
        if names != subscription.names:
            subscription.names, subscription.sent = names, None

    def _answers(self, client: _Client) -> Iterator[Any]:
        for kind, subscription in client.subscriptions.items():
            chosen = subscription.choose(kind, self._now[kind])
            if subscription.is_acknowledged and chosen != subscription.sent:
                self._sent += 1
                subscription.sent, subscription.nonce, subscription.is_acknowledged = chosen, str(self._sent), False
                yield pb.DiscoveryResponse(
                    version_info=str(self._sent), nonce=str(self._sent), type_url=kind, resources=list(chosen.values())
                )
