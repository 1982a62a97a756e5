"""Server reflection: grpcurl and the like list and call the services without a .proto at hand."""

import grpc
import grpc.aio
from grpc_reflection.v1alpha import reflection, reflection_pb2
from tritonclient.grpc import service_pb2

from tritonembed_manager.serve.arctic_pb import arctic_inference_pb2
from tritonembed_manager.serve.grpc_health import HEALTH

SERVICES = (
    service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name,
    arctic_inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
    HEALTH,
)
NAMES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
"""The same messages under both names; older tools know only the second."""


def add_reflection(server: grpc.aio.Server) -> None:
    """Let a server answer for reflection."""
    # Its type stubs know only the blocking one.
    servicer = reflection.aio.ReflectionServicer((*SERVICES, *NAMES[1:]))  # type: ignore[attr-defined]
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    handlers = [grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler}) for name in NAMES]
    server.add_generic_rpc_handlers(tuple(handlers))
