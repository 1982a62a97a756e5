"""Server reflection, as grpcurl uses it."""

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2

from tritonembed_manager.router.endpoints import NAMES, add_reflection

OURS = {
    "arctic_inference.InferenceService": {"Encode", "Abort", "GetReplicaInfo", "HealthCheck"},
    "grpc.health.v1.Health": {"Check", "Watch"},
    "inference.GRPCInferenceService": {"ModelInfer", "ModelStreamInfer", "ModelStatistics", "ServerReady"},
}


@pytest.fixture(params=NAMES)
async def ask(request):
    server = grpc.aio.server()
    add_reflection(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        method = channel.stream_stream(
            f"/{request.param}/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )

        async def ask(**fields):
            call = method(iter([reflection_pb2.ServerReflectionRequest(**fields)]), timeout=20)
            [answer] = [answer async for answer in call]
            return answer

        yield ask
    await server.stop(None)


async def test_all_services_are_listed(ask):
    listed = (await ask(list_services="")).list_services_response.service
    assert {service.name for service in listed} >= set(OURS)


@pytest.mark.parametrize("service", OURS)
async def test_a_service_is_described_with_all_its_files(ask, service):
    answer = await ask(file_containing_symbol=service)
    files = [FileDescriptorProto.FromString(file) for file in answer.file_descriptor_response.file_descriptor_proto]
    names = {file.name for file in files}
    assert all(set(file.dependency) <= names for file in files)
    [methods] = [
        {method.name for method in found.method}
        for file in files
        for found in file.service
        if f"{file.package}.{found.name}" == service
    ]
    assert methods >= OURS[service]


async def test_an_unknown_symbol_is_not_found(ask):
    answer = await ask(file_containing_symbol="another.Service")
    assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
