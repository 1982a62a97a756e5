"""One trace from a client's request to Triton's models; a real Prometheus stores exemplars that lead to traces."""

import json
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tests.integration.serve import Serve, serving

from tritonembed import EmbeddingClient
from tritonembed_perf.server import free_ports


class Span:
    """What a collector gets of a span."""

    def __init__(self, service: str, name: str, trace: str, id: str, parent: str, attributes: dict[str, str]) -> None:
        self.service, self.name, self.trace, self.id, self.parent = service, name, trace, id, parent
        self.attributes = attributes


class Collector(ThreadingHTTPServer):
    """A collector of OpenTelemetry: the manager sends protobuf, Triton JSON."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1/traces"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def of(self, trace: str) -> dict[str, Span]:
        """The spans of a trace, by name; a server's begins with "server "."""
        return {f"{span.service} {span.name}": span for span in self.spans if span.trace == trace}


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.spans += _of_json(body) if "json" in self.headers["Content-Type"] else _of_protobuf(body)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


def _of_json(body: bytes) -> list[Span]:
    return [
        Span(
            next(one["value"]["stringValue"] for one in each["resource"]["attributes"] if one["key"] == "service.name"),
            *(span[name] for name in ("name", "traceId", "spanId")),
            span.get("parentSpanId", ""),
            {one["key"]: str(one["value"]) for one in span.get("attributes", ())},
        )
        for each in json.loads(body)["resourceSpans"]
        for scope in each["scopeSpans"]
        for span in scope["spans"]
    ]


def _of_protobuf(body: bytes) -> list[Span]:
    return [
        Span(
            next(one.value.string_value for one in each.resource.attributes if one.key == "service.name"),
            span.name + (" (client)" if span.kind == span.SPAN_KIND_CLIENT else ""),
            *(value.hex() for value in (span.trace_id, span.span_id, span.parent_span_id)),
            {one.key: str(one.value).strip() for one in span.attributes},
        )
        for each in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in each.scope_spans
        for span in scope.spans
    ]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running
        running.shutdown()


@pytest.fixture(scope="module")
def manager(model: Path, collector: Collector) -> Iterator[Serve]:
    arguments = ["--model", model, "--device=cpu", "--num-replicas=1", "--tokenizer-instances=1", "--no-reference"]
    traces = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "200"}
    with serving(*arguments, f"--triton-traces={collector.url}", **traces) as started:
        yield started


TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALL = "inference.GRPCInferenceService/ModelInfer"


def test_one_trace_goes_from_the_client_to_tritons_models(manager: Serve, collector: Collector) -> None:
    with EmbeddingClient(manager.target, metadata={"traceparent": f"00-{TRACE}-{PARENT}-01"}) as client:
        client.embed(["a text", "another one"])
    ours, theirs = "tritonembed-manager", "tritonembed-server"
    way = [f"{ours} {CALL}", f"{ours} {CALL} (client)", f"{theirs} InferRequest", f"{theirs} embedding"]
    manager.until(lambda: {*way, f"{theirs} embedder"} <= set(collector.of(TRACE)), 60)
    found = collector.of(TRACE)
    parent = PARENT
    for name in (*way, f"{theirs} embedder"):
        assert found[name].parent == parent, name
        parent = found[name].id
    assert found[f"{theirs} tokenizer"].parent == found[f"{theirs} embedding"].id
    attributes = found[way[0]].attributes
    assert attributes["tritonembed.server"] == 'string_value: "server-0"'
    assert attributes["tritonembed.sentences"] == "int_value: 2"
    assert {"gen_ai.request.model", "tritonembed.wait_s", "tritonembed.server_s"} <= set(attributes)


def test_prometheus_stores_exemplars_that_lead_to_traces(manager: Serve, collector: Collector, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    scrape = {"job_name": "manager", "static_configs": [{"targets": [f"127.0.0.1:{manager.http_port}"]}]}
    settings = {"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]}
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(settings))
    command = [
        "prometheus",
        f"--config.file={tmp_path / 'prometheus.yaml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
    ]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=exemplar-storage"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:

        def ask(path: str, **parameters: object) -> Any:
            url = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
            try:
                with urllib.request.urlopen(url, timeout=10) as answer:
                    return json.load(answer)["data"]
            except OSError:
                return None

        def exemplars() -> list[str]:
            query = {"query": "tritonembed_request_duration_seconds_bucket"}
            found = ask("query_exemplars", **query, start=time.time() - 600, end=time.time() + 60) or []
            return [one["labels"]["trace_id"] for series in found for one in series["exemplars"]]

        with EmbeddingClient(manager.target) as client:
            client.embed(["a text"])
            traces = manager.until(exemplars, 60)
        assert [trace for trace in traces if not collector.of(trace)] == []
        (target,) = ask("targets")["activeTargets"]
        assert (target["health"], target["lastError"]) == ("up", "")
    finally:
        process.kill()
        process.wait()
