"""The servers as xDS resources (v3), for an Envoy or a gRPC client of the user's own.

A cluster per model has the name of Triton's model, such as `embedding`, and so has a listener, which gRPC clients reach
as xds:///embedding. Envoys choose the policy of --load-balancing; gRPC's clients know only round_robin.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from google.protobuf.any_pb2 import Any as Packed  # type: ignore[import-untyped]
from google.protobuf.duration_pb2 import Duration  # type: ignore[import-untyped]
from google.protobuf.message import Message  # type: ignore[import-untyped]
from google.protobuf.wrappers_pb2 import UInt32Value  # type: ignore[import-untyped]

from tritonembed_manager.router.control.envoy.clusters import CONNECT_S, Endpoint
from tritonembed_manager.router.control.xds.xds_pb import xds_pb2 as pb
from tritonembed_manager.router.interfaces import ServerState
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
"""By their names."""


def resources(policy: PolicyName, servers: Mapping[str, Sequence[Endpoint]]) -> dict[str, Resources]:
    """All resources, by type URL. servers: by Triton's name of their model."""
    return {
        LISTENER: {model: _packed(LISTENER, _listener(model)) for model in servers},
        CLUSTER: {model: _packed(CLUSTER, _cluster(model, policy)) for model in servers},
        ENDPOINTS: {model: _packed(ENDPOINTS, _endpoints(model, found)) for model, found in servers.items()},
    }


def _listener(model: str) -> Message:
    """For gRPC clients: every method of the channel goes to the cluster."""
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
    # A client takes the first policy that it knows.
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
