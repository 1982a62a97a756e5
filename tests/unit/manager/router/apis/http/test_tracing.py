"""OpenTelemetry: a span per request, its context passed on to Triton, and nothing of the text."""

import subprocess
import sys

import grpc
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.fakes.triton import infer_request
from tests.unit.manager.router.apis.http.conftest import running

from tritonembed_manager.router.data import tracing
from tritonembed_manager.router.interfaces import Caller, DispatchError

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADERS = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}


@pytest.fixture
def spans():
    return InMemorySpanExporter()


@pytest.fixture
async def traced(dispatcher, spans):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    async with running(dispatcher, tracing.Tracing(provider)) as serving:
        yield serving


async def test_the_context_is_passed_on(traced, dispatcher, spans):
    await traced.post("/v1/embeddings", json={"input": "secret"}, headers=HEADERS)
    client, server = spans.get_finished_spans()
    assert server.name == "POST /v1/embeddings"
    assert server.context.trace_id == client.context.trace_id == int(TRACE, 16)
    assert server.parent.span_id == int(PARENT, 16)
    assert client.parent.span_id == server.context.span_id
    assert server.attributes["http.response.status_code"] == 200
    assert dispatcher.metadata == [
        {"traceparent": f"00-{TRACE}-{client.context.span_id:016x}-01", "tracestate": "vendor=1"}
    ]
    assert "secret" not in client.to_json() + server.to_json()


async def test_without_a_caller_a_trace_begins_here(traced, dispatcher, spans):
    await traced.post("/v1/embeddings", json={"input": ["a"] * 2000})
    first, second, server = spans.get_finished_spans()
    assert server.parent is None
    assert first.parent.span_id == second.parent.span_id == server.context.span_id
    assert [found["traceparent"].split("-")[1] for found in dispatcher.metadata] == [
        f"{server.context.trace_id:032x}"
    ] * 2


async def test_an_error_marks_its_spans_without_its_text(traced, dispatcher, spans):
    dispatcher.failure = DispatchError(grpc.StatusCode.UNAVAILABLE, "secret words")
    await traced.post("/v1/embeddings", json={"input": "a"})
    client, server = spans.get_finished_spans()
    assert [span.status.status_code.name for span in (client, server)] == ["ERROR", "ERROR"]
    assert client.attributes["rpc.grpc.status_code"] == 14
    assert "secret" not in client.to_json() + server.to_json()


async def test_the_id_of_a_request_comes_back_also_with_an_error(traced, dispatcher):
    answer = await traced.post("/v1/embeddings", json={"input": "a"}, headers={"x-request-id": "id-7"})
    assert answer.headers["x-request-id"] == "id-7"
    answer = await traced.post("/v1/embeddings", json={"input": 7}, headers={"X-Request-Id": "id-8"})
    assert (answer.status, answer.headers["x-request-id"]) == (400, "id-8")
    answer = await traced.post("/v1/embeddings", json={"input": "a"}, headers={"x-request-id": "a b"})
    assert len(answer.headers["x-request-id"]) == 32
    assert "x-request-id" not in (await traced.post("/v1/embeddings", json={"input": "a"})).headers


async def test_probes_and_pages_have_no_spans(traced, spans):
    for path in ("/health", "/v2/health/ready", "/metrics", "/status"):
        await traced.get(path)
    assert not spans.get_finished_spans()


async def test_a_grpc_callers_context_is_the_parent(dispatcher, spans):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    over = tracing.Tracing(provider).over(dispatcher)
    await over.infer(
        infer_request(b"a").SerializeToString(),
        timeout=None,
        metadata=[*HEADERS.items(), ("other", "kept"), ("bin-bin", b"\x00")],
        caller=Caller("somebody"),
    )
    [span] = spans.get_finished_spans()
    assert span.parent.span_id == int(PARENT, 16)
    assert dispatcher.metadata[0].keys() == {"traceparent", "tracestate", "other", "bin-bin"}
    assert over.servers() == dispatcher.servers()


@pytest.mark.parametrize(
    ("environment", "is_on"),
    [
        ({}, False),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_TRACES_EXPORTER": "nothing known"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, True),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
    ],
)
def test_the_usual_variables_turn_tracing_on(environment, is_on):
    found = tracing.from_environment(environment)
    assert (found.provider is not None) == is_on
    found.close()


def test_without_opentelemetry_the_manager_warns_and_serves():
    script = """
import logging, sys
sys.modules["opentelemetry"] = None
logging.basicConfig()
from tritonembed_manager.router.data import tracing
found = tracing.from_environment({"OTEL_TRACES_EXPORTER": "otlp"})
assert found.provider is None
dispatcher = object()
assert found.over(dispatcher) is dispatcher
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "tritonembed[tracing] is not installed" in ended.stderr
