"""Calls for vectors over gRPC: the id of each comes back, and each has a span under its caller's."""

from contextlib import asynccontextmanager

import grpc
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.fakes.data_plane import data_plane
from tests.fakes.triton import OPTIONS, infer_request
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tritonembed_manager.router.apis.grpc_arrivals import Arrivals
from tritonembed_manager.router.apis.grpc_requests import GrpcRequests
from tritonembed_manager.router.apis.kserve_grpc import add_kserve
from tritonembed_manager.router.data.tracing import Tracing

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
METADATA = (("traceparent", f"00-{TRACE}-{PARENT}-01"),)
METHOD = "inference.GRPCInferenceService/ModelInfer"


@asynccontextmanager
async def endpoint(tracing=None, *, is_logged=False):
    """A port as a worker has it, over one fake server."""
    tracing = tracing or Tracing()
    async with data_plane(1) as plane:
        if tracing.provider is not None:
            plane.dispatcher.meter.on_end = lambda admission, _code, _seconds: tracing.note(
                admission, {"gen_ai.request.model": "a-model"}
            )
            plane.dispatcher.meter.trace_id = tracing.trace_id
        server = grpc.aio.server(options=OPTIONS)
        wrapped = Arrivals(60).over(GrpcRequests(tracing, is_logged=is_logged).over(server))
        add_kserve(wrapped, tracing.over(plane.dispatcher), lambda: True)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", OPTIONS) as channel:
            yield plane, service_pb2_grpc.GRPCInferenceServiceStub(channel)
        await server.stop(None)


@pytest.fixture
def spans():
    return InMemorySpanExporter()


@pytest.fixture
def tracing(spans):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return Tracing(provider)


async def trailing(call):
    return dict(await call.trailing_metadata())


async def test_the_id_of_a_call_comes_back_also_with_an_error():
    async with endpoint() as (plane, stub):
        call = stub.ModelInfer(infer_request(b"text"), timeout=10, metadata=(("x-request-id", "id-7"),))
        await call
        assert (await trailing(call))["x-request-id"] == "id-7"
        plane.fakes[0].fail_first, plane.fakes[0].failure = 1, (grpc.StatusCode.INVALID_ARGUMENT, "wrong")
        call = stub.ModelInfer(infer_request(b"text"), timeout=10, metadata=(("x-request-id", "id-8"),))
        with pytest.raises(grpc.aio.AioRpcError):
            await call
        assert (await trailing(call))["x-request-id"] == "id-8"
        call = stub.ModelStreamInfer(
            iter([infer_request(b"a"), infer_request(b"b")]), metadata=(("x-request-id", "s"),)
        )
        assert len([answer async for answer in call]) == 2
        assert (await trailing(call))["x-request-id"] == "s"
        call = stub.ModelInfer(infer_request(b"text"), timeout=10)
        await call
        assert "x-request-id" not in await trailing(call)


async def test_a_call_without_an_id_gets_one_if_there_is_a_log():
    async with endpoint(is_logged=True) as (_, stub):
        call = stub.ModelInfer(infer_request(b"text"), timeout=10)
        await call
        assert len((await trailing(call))["x-request-id"]) == 32


async def test_a_call_has_a_server_span_with_what_became_of_it(tracing, spans):
    async with endpoint(tracing) as (plane, stub):
        await stub.ModelInfer(infer_request(b"a secret text", b"b"), timeout=10, metadata=METADATA)
        client, server = spans.get_finished_spans()
        assert (server.name, server.kind.name, client.kind.name) == (METHOD, "SERVER", "CLIENT")
        assert server.context.trace_id == client.context.trace_id == int(TRACE, 16)
        assert server.parent.span_id == int(PARENT, 16)
        assert client.parent.span_id == server.context.span_id
        attributes = dict(server.attributes)
        assert 0 <= attributes.pop("tritonembed.wait_s") < attributes.pop("tritonembed.server_s") + 1
        assert attributes == {
            "rpc.system": "grpc",
            "rpc.service": "inference.GRPCInferenceService",
            "rpc.method": "ModelInfer",
            "rpc.grpc.status_code": 0,
            "tritonembed.server": "0",
            "tritonembed.sentences": 2,
            "gen_ai.usage.input_tokens": 4,
            "gen_ai.request.model": "a-model",
        }
        assert client.attributes["tritonembed.server"] == "0"
        assert "secret" not in server.to_json() + client.to_json()
        # The slow bucket of a histogram leads to this trace.
        (exemplar,) = plane.dispatcher.meter.exemplars.values()
        assert exemplar.trace_id == TRACE


@pytest.mark.parametrize(("code", "is_ours"), [("INVALID_ARGUMENT", False), ("INTERNAL", True)])
async def test_only_the_services_own_errors_mark_the_span(code, is_ours, tracing, spans):
    async with endpoint(tracing) as (plane, stub):
        plane.fakes[0].fail_first, plane.fakes[0].failure = 1, (grpc.StatusCode[code], "a secret")
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.ModelInfer(infer_request(b"text"), timeout=10)
        server = spans.get_finished_spans()[-1]
        assert server.attributes["rpc.grpc.status_code"] == grpc.StatusCode[code].value[0]
        assert (server.status.status_code.name == "ERROR") == is_ours
        assert "secret" not in server.to_json()
        assert plane.dispatcher.meter.exemplars == {}


async def test_calls_at_the_same_time_have_spans_of_their_own_and_health_has_none(tracing, spans):
    async with endpoint(tracing) as (_, stub):
        await stub.ServerReady(service_pb2.ServerReadyRequest())
        calls = [stub.ModelInfer(infer_request(b"x" * n), timeout=10) for n in range(1, 11)]
        for call in calls:
            await call
        found = [span for span in spans.get_finished_spans() if span.kind.name == "SERVER"]
        assert len({span.context.trace_id for span in found}) == len(found) == 10
        assert all(span.parent is None for span in found)
