"""A real manager that is attached to servers: found by DNS, named by variables, with other vectors, and traced.

The servers are fakes, because their vectors do not matter here.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.threaded import fake_triton, http_server, start_anew
from tests.fakes.triton import FakeTriton
from tests.integration.serve import Load, Serve, serving

from tritonembed import EmbeddingClient, UnavailableError


def test_servers_behind_a_name_are_found_and_variables_replace_options() -> None:
    with fake_triton() as server:
        variables = {
            "TRITONEMBED_SERVERS_DNS": f"localhost:{server.address.rpartition(':')[2]}",
            "TRITONEMBED_MODEL": "called-so",
            "TRITONEMBED_LOAD_BALANCING": "random",
            "TRITONEMBED_WORKERS": "2",
        }
        with serving(**variables) as manager:
            assert manager.serves()
            status = manager.until(manager.status)
            # localhost may have an address at which nothing listens.
            assert "ready" in manager.states()
            assert {server["id"].rpartition(":")[2] for server in status["servers"]} == {
                server.address.rpartition(":")[2]
            }
            assert (status["model"], status["policy"], status["workers"]["count"]) == ("called-so", "random", 2)


def test_a_server_with_other_vectors_is_refused_and_status_has_the_reason() -> None:
    def other(fake: FakeTriton) -> None:
        fake.vector_sign = -1.0

    with (
        fake_triton() as first,
        fake_triton(other) as odd,
        serving("--server", first.address, "--server", odd.address, "--health-interval=0.2") as manager,
    ):
        assert manager.states() == ["ready", "refused"]
        asked = len(odd.requests)
        with EmbeddingClient(manager.target) as client:
            rows = client.embed([f"sentence {number}" for number in range(20)], batch_size=1).embeddings
        assert len(rows) == 20
        # Only checks, which have three sentences.
        assert all(request.inputs[0].shape[0] == 3 for request in odd.requests[asked:])
        command = [sys.executable, "-m", "tritonembed_manager", "status", "--manager", f"127.0.0.1:{manager.http_port}"]
        shown = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "220"}, timeout=60)
        line = next(line for line in shown.stdout.splitlines() if line.startswith(f"{odd.address} is refused: "))
        assert f"its vectors differ (cosine -1.0000, at least 0.999 wanted) from those of {first.address}" in line
        odd.vector_sign = 1.0
        manager.until(lambda: manager.states() == ["ready", "ready"])


def test_if_all_servers_look_bad_requests_still_go_to_them() -> None:
    checks = ["--health-interval=0.2", "--health-timeout=0.5"]
    with (
        fake_triton() as first,
        fake_triton() as second,
        serving("--server", first.address, "--server", second.address, *checks) as manager,
    ):
        # Too slow for a check, but not for a request.
        first.latency = second.latency = 1.0
        manager.until(lambda: manager.states() == ["unhealthy"] * 2)
        with EmbeddingClient(manager.target) as client:
            assert len(client.embed(["a text"], timeout=30).embeddings) == 1
        first.latency = second.latency = 0.0
        manager.until(lambda: manager.states() == ["ready"] * 2)


def list_servers(manager: Serve, file: Path, *servers: str) -> None:
    """Writes the servers file, and waits until the manager has exactly these servers, all of them ready."""
    file.write_text("".join(f"{server}\n" for server in servers))
    manager.until(lambda: [s["id"] for s in manager.status().get("servers", ())] == list(servers))
    manager.until(lambda: manager.states() == ["ready"] * len(servers))


def test_all_servers_are_replaced_under_load_through_the_servers_file(tmp_path: Path) -> None:
    """Each server crashes and comes back while it is not listed. tests/slow does this with real servers."""
    listed = tmp_path / "servers"
    with fake_triton() as one, fake_triton() as other:
        first, second = one.address, other.address
        listed.write_text(f"{first}\n")
        with serving("--servers-file", listed, "--health-interval=0.5") as manager:
            with Load(manager.target, clients=16, rest_s=0.1) as load:
                load.answers(32)
                list_servers(manager, listed, first, second)
                list_servers(manager, listed, second)
                start_anew(one, down_s=0.5)
                list_servers(manager, listed, second, first)
                list_servers(manager, listed, first)
                start_anew(other, down_s=0.5)
                list_servers(manager, listed, first, second)
                load.answers(32)
            assert load.errors == []


def test_a_drain_admits_nothing_new_and_a_second_signal_forces() -> None:
    with fake_triton() as server, serving("--server", server.address, "--health-interval=3600") as manager:
        server.latency = 3600.0
        with EmbeddingClient(manager.target) as client, ThreadPoolExecutor() as threads:
            held = threads.submit(client.embed, ["a text"], timeout=60)
            manager.until(lambda: manager.status()["totals"]["in_flight"] == 1, limit=30)
            manager.process.send_signal(signal.SIGTERM)
            manager.until(lambda: "finishing requests in flight" in manager.log(), limit=30)
            with EmbeddingClient(manager.target) as late:
                manager.until(lambda: _error(late) == "the manager is draining: it accepts no new requests", limit=30)
            assert not held.done()
            # The same signal within a quarter of a second would count as an echo of the first.
            manager.process.send_signal(signal.SIGINT)
            assert manager.process.wait(30) == 1
            assert isinstance(held.exception(30), UnavailableError)
        assert manager.log().splitlines()[-1].endswith("SIGINT while stopping: killed")


def test_requests_cut_by_a_drain_fail_with_the_reason_over_grpc_and_http_and_the_exit_code_is_1() -> None:
    # The timeout, and some time for the processes to end. A busy machine may be late once.
    assert any(seconds_of_a_drain_that_cuts() < 2 + 2 for _ in range(3))


def seconds_of_a_drain_that_cuts() -> float:
    """From the signal to the end of the manager. The answers are so late that the server seems hung."""
    options = "--health-interval=3600", "--drain-timeout=2", "--workers=2"
    with fake_triton() as server, serving("--server", server.address, *options) as manager:
        server.latency = 3600.0
        with EmbeddingClient(manager.target) as client, ThreadPoolExecutor() as threads:
            held = threads.submit(client.embed, ["a text"], timeout=60)
            posted = threads.submit(_post, f"http://127.0.0.1:{manager.http_port}/v1/embeddings")
            manager.until(lambda: server.inside == 2, limit=30)
            began = time.monotonic()
            manager.process.send_signal(signal.SIGTERM)
            error = held.exception(30)
            assert isinstance(error, UnavailableError)
            assert "--drain-timeout" in str(error)
            status, body = posted.result(30)
            assert status == 503
            assert "--drain-timeout" in body
            assert manager.process.wait(30) == 1
            seconds = time.monotonic() - began
        last = manager.log().splitlines()[-1]
        assert last == "tritonembed-manager: 2 requests did not finish within 2 s (--drain-timeout): cut"
    return seconds


def _post(url: str) -> tuple[int, str]:
    body = json.dumps({"model": "embedding", "input": "a text"}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def _error(client: EmbeddingClient) -> str:
    try:
        client.embed(["a text"], timeout=30)
    except UnavailableError as error:
        return str(error)
    return ""


def test_status_watch_follows_until_ctrl_c() -> None:
    with fake_triton() as server, serving("--server", server.address) as manager:
        command = [sys.executable, "-m", "tritonembed_manager", "status", "--watch", "--json"]
        variables = os.environ | {"TRITONEMBED_MANAGER": f"127.0.0.1:{manager.http_port}"}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables
        ) as watch:
            assert watch.stdout is not None
            seen = [json.loads(watch.stdout.readline()) for _ in range(2)]
            watch.send_signal(signal.SIGINT)
            _, said = watch.communicate(timeout=30)
        assert seen[1]["uptime_s"] > seen[0]["uptime_s"]
        assert [server["state"] for server in seen[1]["servers"]] == ["ready"]
        assert said == ""


class Collector(HTTPServer):
    """A server that receives OTLP over HTTP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Take)
        self.bodies: list[bytes] = []


class _Take(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        self.server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Logs nothing."""


@contextmanager
def collector() -> Iterator[Collector]:
    """A collector that listens."""
    listening = Collector()
    with http_server(listening):
        yield listening


def test_traces_are_exported_and_passed_on_to_triton_without_any_text() -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

    caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with fake_triton() as server, collector() as traces:
        endpoint = f"http://127.0.0.1:{traces.server_port}"
        with serving("--server", server.address, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint) as manager:
            with EmbeddingClient(manager.target, metadata=[("traceparent", caller)]) as client:
                client.embed(["mxyzptlk"])
            [forwarded] = [row["traceparent"] for row in server.metadata if "traceparent" in row]
            # In order, because the last spans are exported at the end.
            manager.process.send_signal(signal.SIGTERM)
            assert manager.process.wait(60) == 0
        spans = [
            span
            for body in traces.bodies
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
    _, trace_id, parent_id, _ = caller.split("-")
    # The client's question for the embedding space has spans, too.
    assert {span.trace_id.hex() for span in spans} == {trace_id}
    [sent] = [span for span in spans if span.span_id.hex() == forwarded.split("-")[2]]
    [received] = [span for span in spans if span.span_id == sent.parent_span_id]
    assert (received.kind, sent.kind) == (Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CLIENT)
    assert received.parent_span_id.hex() == parent_id
    assert forwarded.split("-")[1] == trace_id
    assert not any(b"mxyzptlk" in body for body in traces.bodies)
