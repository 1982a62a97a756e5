"""/metrics: one valid text with the metrics of the workers, the parent and every server."""

import asyncio
from bisect import bisect_left
from contextlib import suppress
from importlib.metadata import version

import grpc
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics_families
from prometheus_client.parser import text_string_to_metric_families
from tests.unit.manager.router.apis.http.conftest import running, server_view

from tritonembed_manager.router.apis.http import prometheus as metrics
from tritonembed_manager.router.apis.http.prometheus import Merged
from tritonembed_manager.router.data.metrics import BOUNDS, Exemplar, Meter, WorkerMetrics
from tritonembed_manager.router.interfaces import ServerState

TRITON = """# HELP nv_inference_request_success Number of successful inference requests
# TYPE nv_inference_request_success counter
nv_inference_request_success{{model="embedding",version="1"}} {count}
# HELP nv_inference_first_response_histogram_ms Duration
# TYPE nv_inference_first_response_histogram_ms histogram
nv_inference_first_response_histogram_ms_bucket{{model="embedding",le="100"}} 1
nv_inference_first_response_histogram_ms_bucket{{model="embedding",le="+Inf"}} 2
nv_inference_first_response_histogram_ms_sum{{model="embedding"}} 1.5e+02
nv_inference_first_response_histogram_ms_count{{model="embedding"}} 2
# HELP nv_cpu_utilization CPU utilization rate [0.0 - 1.0]
# TYPE nv_cpu_utilization gauge
nv_cpu_utilization 0.25 1700000000000
"""


def families(text):
    return {family.name: family for family in text_string_to_metric_families(text)}


def samples(family):
    return {(sample.name, *sorted(sample.labels.items())): sample.value for sample in family.samples}


def test_each_metric_appears_once_with_the_samples_of_all():
    merged = Merged()
    merged.add(TRITON.format(count=3), "a")
    merged.add(TRITON.format(count=4), 'b"\\')
    text = merged.text()
    assert text.count("# TYPE") == 3
    assert text.count("# HELP") == 3
    found = families(text)
    assert samples(found["nv_inference_request_success"]) == {
        ("nv_inference_request_success_total", ("model", "embedding"), ("server", name), ("version", "1")): value
        for name, value in (("a", 3), ('b"\\', 4))
    }
    assert len(found["nv_inference_first_response_histogram_ms"].samples) == 8
    assert found["nv_cpu_utilization"].samples[0].labels == {"server": "a"}


def test_lines_that_are_no_samples_are_left_out():
    merged = Merged()
    merged.add("<html>\nnot {a sample\n# a comment\n\nup 1\n")
    assert merged.text() == "up 1\n"


@pytest.fixture
async def triton():
    async def metrics(_request):
        return web.Response(text=TRITON.format(count=7))

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    async with TestServer(app) as server:
        yield f"127.0.0.1:{server.port}"


async def test_one_scrape_has_all(serving, dispatcher, triton):
    dispatcher.views = [
        server_view("a", metrics=triton, restarts=2, replicas=3),
        server_view("gone", ServerState.UNHEALTHY, metrics="127.0.0.1:1"),
        server_view("quiet"),
    ]
    answer = await serving.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    found = families(answer.raw.decode())
    assert found["nv_inference_request_success"].samples[0].labels["server"] == "a"
    assert samples(found["tritonembed_server_scraped"]) == {
        ("tritonembed_server_scraped", ("server", "a")): 1,
        ("tritonembed_server_scraped", ("server", "gone")): 0,
    }
    states = samples(found["tritonembed_server_state"])
    assert states["tritonembed_server_state", ("server", "gone"), ("state", "unhealthy")] == 1
    assert states["tritonembed_server_state", ("server", "gone"), ("state", "ready")] == 0
    restarts = samples(found["tritonembed_server_restarts"])
    assert restarts["tritonembed_server_restarts_total", ("server", "a")] == 2
    assert found["tritonembed_server_replicas"].samples[0].value == 3


async def test_the_version_and_the_space_of_each_server_are_labels(serving, dispatcher):
    dispatcher.views = [server_view("a", space="digest-float32", version="v1"), server_view("unchecked")]
    found = families((await serving.get("/metrics")).raw.decode())
    labels = {"server": "a", "model": "embedding", "version": "v1", "embedding_space": "digest-float32"}
    assert [(one.labels, one.value) for one in found["tritonembed_server_space_info"].samples] == [(labels, 1)]
    assert [one.labels for one in found["tritonembed_build_info"].samples] == [{"version": version("tritonembed")}]
    # Without a certificate there is nothing to warn of.
    assert found["tritonembed_certificate_expiry_timestamp_seconds"].samples == []


def test_open_metrics_have_exemplars_and_follow_their_specification():
    merged = Merged()
    registry = CollectorRegistry()
    counted = WorkerMetrics(registry)
    meter = Meter()
    for seconds in (0.004, 0.3):
        meter.request(grpc.StatusCode.OK, seconds)
    counted.take(meter.collect(), in_flight=0, waiting=0, servers=[])
    merged.add(generate_latest(registry).decode())
    merged.add(TRITON.format(count=3), "a")
    exemplars = {bisect_left(BOUNDS, 0.3): Exemplar("7f" * 16, 0.3, 1764540000.5)}
    # The parser of Prometheus' own client, which is strict.
    found = {family.name: family for family in open_metrics_families(merged.open_metrics(exemplars))}
    with_one = {
        (family.name, sample.labels["le"]): sample.exemplar
        for family in found.values()
        for sample in family.samples
        if sample.exemplar is not None
    }
    ((name, bound), exemplar) = with_one.popitem()
    assert (with_one, name, float(bound)) == ({}, "tritonembed_request_duration_seconds", 0.3)
    assert (exemplar.labels, exemplar.value, float(exemplar.timestamp)) == ({"trace_id": "7f" * 16}, 0.3, 1764540000.5)
    assert found["nv_inference_request_success"].type == "unknown"
    assert found["tritonembed_retries"].type == "counter"


async def test_only_with_tracing_a_scrape_that_accepts_open_metrics_gets_them(serving, dispatcher):
    accept = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}
    assert (await serving.get("/metrics", headers=accept)).headers["Content-Type"].startswith("text/plain")
    async with running(dispatcher, exemplars=dict) as traced:
        answer = await traced.get("/metrics", headers=accept)
        assert answer.headers["Content-Type"] == metrics.OPEN_METRICS_TYPE
        assert answer.raw.endswith(b"# EOF\n")
        assert (await traced.get("/metrics")).headers["Content-Type"].startswith("text/plain")


async def scraped_once(serving, dispatcher, write):
    """A scrape of a server whose metrics are sent by `write`."""

    async def metrics(request):
        answer = web.StreamResponse()
        await answer.prepare(request)
        await write(answer)
        return answer

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    async with TestServer(app) as server:
        dispatcher.views = [server_view("a", metrics=f"127.0.0.1:{server.port}")]
        return families((await serving.get("/metrics")).raw.decode())


async def test_metrics_that_arrive_in_pieces_are_read_to_the_end(serving, dispatcher):
    async def write(answer):
        await answer.write(b"nv_first 1\nnv_sec")
        await asyncio.sleep(0.05)
        await answer.write(b"ond 2\n")

    found = await scraped_once(serving, dispatcher, write)
    assert [found[name].samples[0].value for name in ("nv_first", "nv_second")] == [1, 2]
    assert found["tritonembed_server_scraped"].samples[0].value == 1


async def test_metrics_without_an_end_are_left_out(serving, dispatcher, monkeypatch):
    monkeypatch.setattr(metrics, "_MAX_BYTES", 100_000)

    async def write(answer):
        with suppress(ConnectionError):
            while True:
                await answer.write(b"nv_first 1\n" * 1000)

    found = await scraped_once(serving, dispatcher, write)
    assert "nv_first" not in found
    assert found["tritonembed_server_scraped"].samples[0].value == 0


async def test_workers_are_added_up(serving, tmp_path, monkeypatch):
    # Writes the files that two workers would have left.
    import subprocess
    import sys

    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    script = (
        "import prometheus_client as p; p.Counter('tritonembed_requests', 'Requests.', ['code']).labels('OK').inc(5)"
    )
    for _ in range(2):
        subprocess.run([sys.executable, "-c", script], check=True)
    found = families((await serving.get("/metrics")).raw.decode())
    assert samples(found["tritonembed_requests"]) == {("tritonembed_requests_total", ("code", "OK")): 10}
