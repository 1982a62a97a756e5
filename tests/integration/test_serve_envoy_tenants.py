"""`serve --data-plane envoy --tenants`: Envoy asks for keys and enforces limits, in one table with the workers."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from tests.fakes.tenants import hash_of, key_of, write_tenants
from tests.fakes.threaded import fake_triton, held, start_anew
from tests.fakes.triton import FakeTriton, infer_request
from tests.integration.serve import Serve, serving
from tritonclient.grpc import service_pb2_grpc

from tritonembed_manager.router.data import tenants as messages

NO_CHECKS = ("--health-interval=3600", "--health-timeout=60")
TENANTS = {
    "free": "",
    "watcher": "monitor: true",
    "heavy": "weight: 2",
    "limited": "requests_per_minute: 6",
    "counted": "tokens_per_minute: 1000",
    "narrow": "max_in_flight: 2",
    "elsewhere": "models: [tokenizer]",
    "failing": "requests_per_minute: 6",
}
CODE = grpc.StatusCode


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeTriton]:
    with fake_triton() as started:
        yield started


@pytest.fixture(scope="module")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_tenants(tmp_path_factory.mktemp("tenants") / "tenants.yaml", **TENANTS)
    old = f"  - name: old\n    keys:\n      - sha256: {hash_of('old')}\n        expires: 2020-01-01\n"
    path.write_text(path.read_text() + old)
    return path


@pytest.fixture(scope="module")
def manager(fake: FakeTriton, tenants: Path) -> Iterator[Serve]:
    files = (f"--tenants={tenants}", f"--envoy-access-log={tenants.parent / 'access'}")
    options = ("--data-plane=envoy", "--workers=1", "--envoy-threads=2", *files, *NO_CHECKS)
    with serving("--model=m", "--server", fake.address, *options) as started:
        # Envoy learns a moment later that the server is READY.
        started.until(lambda: infer(started, "free") and envoy_counts(started).get("servers"), 30)
        yield started


def infer(
    manager: Serve, name: str | None, *texts: bytes, metadata: Any = (), channel: Any = None, spoil: Any = None
) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    """Status, message and trailing metadata of a request with the tenant's key."""
    request = infer_request(*(texts or (b"a text",)))
    if spoil is not None:
        spoil(request)
    own = [] if name is None else [("authorization", f"Bearer {key_of(name)}")]
    opened = channel or grpc.insecure_channel(manager.target)
    try:
        call = service_pb2_grpc.GRPCInferenceServiceStub(opened).ModelInfer
        answer, done = call.with_call(request, timeout=60, metadata=[*own, *metadata])
        assert answer.model_name == "embedding"
        return done.code(), "", dict(done.trailing_metadata())
    except grpc.RpcError as error:
        return error.code(), error.details(), dict(error.trailing_metadata())
    finally:
        if channel is None:
            opened.close()


def metrics(manager: Serve) -> list[str]:
    url = f"http://127.0.0.1:{manager.http_port}/metrics"
    return httpx.get(url, headers={"x-api-key": key_of("watcher")}, timeout=30).text.splitlines()


def envoy_counts(manager: Serve) -> dict[str, int]:
    """Requests that Envoy sent to each cluster."""
    lines = [line for line in metrics(manager) if line.startswith("envoy_cluster_upstream_rq_total{")]
    return {line.partition('envoy_cluster_name="')[2].partition('"')[0]: int(line.split()[-1]) for line in lines}


def figure(manager: Serve, name: str, tenant: str) -> float:
    [line] = [line for line in metrics(manager) if line.startswith(f"{name}{{") and f'tenant="{tenant}"' in line]
    return float(line.rpartition(" ")[2])


def strangers(manager: Serve) -> float:
    """Requests that Envoy refused for their keys."""
    name = "tritonembed_envoy_unauthenticated_requests_total "
    [line] = [line for line in metrics(manager) if line.startswith(name)]
    return float(line.rpartition(" ")[2])


def status_strangers(manager: Serve) -> int:
    url = f"http://127.0.0.1:{manager.http_port}/status"
    totals = httpx.get(url, headers={"x-api-key": key_of("watcher")}, timeout=30).json()["totals"]
    return int(totals["client_errors"].get("UNAUTHENTICATED", 0))


def way(manager: Serve, *arguments: Any, **options: Any) -> tuple[Any, int, int]:
    """The result of `infer`; and how many requests went to the servers and to the workers."""
    before = envoy_counts(manager)
    found = infer(manager, *arguments, **options)
    after = envoy_counts(manager)
    return found, *(after.get(name, 0) - before.get(name, 0) for name in ("servers", "workers"))


def test_keys_are_checked_in_envoy(manager: Serve, fake: FakeTriton) -> None:
    (code, _, _), servers, workers = way(manager, "free")
    assert (code, servers, workers) == (CODE.OK, 1, 0)
    seen = dict(fake.metadata[-1])
    assert not {"authorization", "x-api-key", "cookie"} & set(seen)
    (code, _, _), *ways = way(manager, None, metadata=[("x-api-key", key_of("free")), ("cookie", "a=b")])
    assert (code, *ways) == (CODE.OK, 1, 0)
    assert "cookie" not in dict(fake.metadata[-1])
    refused = {
        (None,): (CODE.UNAUTHENTICATED, messages.NO_KEY),
        ("stranger",): (CODE.UNAUTHENTICATED, messages.UNKNOWN_KEY),
        ("old",): (CODE.UNAUTHENTICATED, messages.EXPIRED_KEY),
        ("elsewhere",): (CODE.PERMISSION_DENIED, messages.OTHER_MODEL),
    }
    before, of_status = strangers(manager), status_strangers(manager)
    for arguments, expected in refused.items():
        (code, message, _), *ways = way(manager, *arguments)
        assert ((code, message), *ways) == (expected, 0, 0)
    assert strangers(manager) == before + 3
    manager.until(lambda: status_strangers(manager) == of_status + 3)


def test_a_client_cannot_name_its_tenant_itself(manager: Serve) -> None:
    forged = [(messages.ADMITTED, "0")]
    assert infer(manager, None, metadata=forged)[0] is CODE.UNAUTHENTICATED
    # With another version, the request goes to a worker, which is to know its tenant by its key.
    (code, message, _), *ways = way(
        manager, "elsewhere", metadata=forged, spoil=lambda r: setattr(r, "model_version", "1")
    )
    assert (code, message, *ways) == (CODE.PERMISSION_DENIED, messages.OTHER_MODEL, 0, 1)


def test_tenants_with_a_weight_and_requests_that_are_not_plain_go_to_the_workers(manager: Serve) -> None:
    (code, _, _), *ways = way(manager, "heavy")
    assert (code, *ways) == (CODE.OK, 0, 1)
    before = figure(manager, "tritonembed_tenant_requests_total", "free")
    (code, _, _), *ways = way(manager, "free", spoil=lambda r: r.parameters["prompt"].__setattr__("string_param", "ü"))
    assert (code, *ways) == (CODE.OK, 0, 1)
    assert figure(manager, "tritonembed_tenant_requests_total", "free") == before + 1


def test_requests_per_minute_hold_over_envoy_and_the_workers(manager: Serve) -> None:
    code, _, trailers = infer(manager, "limited")
    assert (code, trailers["x-ratelimit-limit-requests"], trailers["x-ratelimit-remaining-requests"]) == (
        CODE.OK,
        "6",
        "5",
    )
    url = f"http://127.0.0.1:{manager.http_port}/v1/embeddings"
    answer = httpx.post(url, headers={"x-api-key": key_of("limited")}, json={"model": "m", "input": "a"}, timeout=60)
    assert (answer.status_code, answer.headers["x-ratelimit-remaining-requests"]) == (200, "4")
    codes = [infer(manager, "limited")[0] for _ in range(4)]
    assert codes == [CODE.OK] * 4
    (code, message, trailers), *ways = way(manager, "limited")
    assert (code, message, *ways) == (
        CODE.RESOURCE_EXHAUSTED,
        "this tenant's 6 requests per minute are used up; try again later",
        0,
        0,
    )
    assert 0 < int(trailers["grpc-retry-pushback-ms"]) <= 10_000
    assert trailers["x-ratelimit-remaining-requests"] == "0"
    assert httpx.post(url, headers={"x-api-key": key_of("limited")}, json={}, timeout=60).status_code == 429
    assert figure(manager, "tritonembed_tenant_requests_total", "limited") == 6


def test_tokens_per_minute_are_estimated_from_the_length(manager: Serve) -> None:
    text = b"word " * 640
    size = infer_request(text).ByteSize()
    code, _, trailers = infer(manager, "counted", text)
    # The bucket fills while the test runs.
    assert code is CODE.OK
    assert 0 <= int(trailers["x-ratelimit-remaining-tokens"]) - (1000 - size // 4) <= 100
    code, message, trailers = infer(manager, "counted", text)
    assert (code, message) == (
        CODE.RESOURCE_EXHAUSTED,
        "this tenant's 1000 tokens per minute are used up; try again later",
    )
    assert int(trailers["grpc-retry-pushback-ms"]) > 0
    assert figure(manager, "tritonembed_tenant_tokens_total", "counted") == size // 4


def test_requests_in_flight_are_limited_and_cancelled_ones_are_not_forgotten(manager: Serve, fake: FakeTriton) -> None:
    with grpc.insecure_channel(manager.target) as channel:
        call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        own = [("authorization", f"Bearer {key_of('narrow')}")]
        with held(fake):
            flying = [call.future(infer_request(b"a text"), metadata=own) for _ in range(2)]
            manager.until(lambda: fake.inside == 2)
            code, message, _ = infer(manager, "narrow")
            assert code is CODE.RESOURCE_EXHAUSTED
            assert message == "this tenant's 2 requests are in flight; try again later"
            for one in flying:
                one.cancel()
            again = manager.until(lambda: started(call, own))
        assert again.result(60).model_name == "embedding"
    assert [infer(manager, "narrow")[0] for _ in range(3)] == [CODE.OK] * 3
    manager.until(lambda: figure(manager, "tritonembed_tenant_requests_in_flight", "narrow") == 0)


def started(call: Any, own: Any) -> Any:
    """A request that was not refused at once; None if it was."""
    future = call.future(infer_request(b"a text"), metadata=own)
    try:
        future.result(0.3)
    except grpc.FutureTimeoutError:
        return future
    except grpc.RpcError:
        return None
    return future


def test_a_server_that_breaks_costs_a_tenant_one_request(manager: Serve, fake: FakeTriton) -> None:
    assert infer(manager, "failing")[2]["x-ratelimit-remaining-requests"] == "5"
    with ThreadPoolExecutor(1) as pool:
        with held(fake):
            waiting = pool.submit(infer, manager, "failing")
            manager.until(lambda: fake.inside == 1)
            start_anew(fake, 0.2)
        code, _, trailers = waiting.result(60)
    assert (code, trailers["x-ratelimit-remaining-requests"]) == (CODE.OK, "4")


def test_a_rotated_key_counts_under_load_without_a_lost_connection(manager: Serve, tenants: Path) -> None:
    codes: list[grpc.StatusCode] = []
    over = threading.Event()

    def load() -> None:
        with grpc.insecure_channel(manager.target) as channel:
            while not over.is_set():
                codes.append(infer(manager, "free", channel=channel)[0])

    thread = threading.Thread(target=load)
    thread.start()
    try:
        with grpc.insecure_channel(manager.target) as channel:
            assert infer(manager, "watcher", channel=channel)[0] is CODE.OK
            before = connections(manager)
            content = tenants.read_text()
            tenants.write_text(content.replace(hash_of("watcher"), hash_of("new")))
            manager.until(lambda: infer(manager, "watcher", channel=channel)[0] is CODE.UNAUTHENTICATED, 20)
            assert infer(manager, "new", channel=channel)[0] is CODE.OK
            tenants.write_text(content)
            manager.until(lambda: infer(manager, "watcher", channel=channel)[0] is CODE.OK, 20)
            assert connections(manager) <= before + 1
    finally:
        over.set()
        thread.join()
    assert set(codes) == {CODE.OK}


def connections(manager: Serve) -> int:
    """Connections that Envoy's gRPC port has had."""
    name = 'envoy_http_downstream_cx_total{envoy_http_conn_manager_prefix="grpc"}'
    url = f"http://127.0.0.1:{manager.http_port}/metrics"
    keys = (key_of("watcher"), key_of("new"))
    texts = [httpx.get(url, headers={"x-api-key": key}, timeout=30).text for key in keys]
    [line] = [line for text in texts for line in text.splitlines() if line.startswith(name)][:1]
    return int(line.rpartition(" ")[2])


def test_no_key_is_in_a_log_or_a_file_of_envoy(manager: Serve, tenants: Path) -> None:
    infer(manager, "free")
    infer(manager, "stranger")
    log = manager.until(lambda: (tenants.parent / "access").read_text())
    assert any(json.loads(line)["grpc_status"] == "Unauthenticated" for line in log.splitlines())
    [envoy] = [process for process in manager.family() if process.name == "envoy"]
    arguments = Path(f"/proc/{envoy.pid}/cmdline").read_text().split("\0")
    folder = Path(arguments[arguments.index("-c") + 1]).parent
    transport = httpx.HTTPTransport(uds=str(folder / "admin.sock"))
    with httpx.Client(transport=transport, base_url="http://envoy") as client:
        dump = client.get("/config_dump").text
    files = [path.read_text() for path in folder.iterdir() if path.is_file()]
    assert hash_of("free") in dump
    for text in (log, manager.log(), dump, *files):
        assert "te-key-of" not in text
