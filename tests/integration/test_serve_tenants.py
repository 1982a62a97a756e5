"""A real manager with tenants, over a real tritonserver: real clients with keys, quotas over workers, and the bill."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import openai
import pytest
import tritonclient.grpc
import tritonclient.http
from tests.fakes.tenants import hash_of, key_of, write_tenants
from tests.integration.serve import Serve, serving

from tritonembed import AuthenticationError, EmbeddingClient, OverloadedError
from tritonembed.cli.app import run as client_main
from tritonembed_manager.commands.app import app as manager_app
from tritonembed_manager.router.apis.arctic_pb import arctic_inference_pb2 as arctic
from tritonembed_perf.cli import main as bench_main
from tritonembed_perf.server import RunningServer

TEXTS = ["a sentence", "another one of them"]
REQUESTS = 6
"""Of the tenant `limited`, per minute: one comes back every ten seconds."""


@pytest.fixture(scope="module")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    limits = {
        "search": "weight: 2",
        "limited": f"requests_per_minute: {REQUESTS}",
        "watcher": "monitor: true",
        "billed": "tokens_per_minute: 1000000",
    }
    return write_tenants(tmp_path_factory.mktemp("tenants") / "tenants.yaml", **limits)


@pytest.fixture(scope="module")
def manager(server: RunningServer, tenants: Path) -> Iterator[Serve]:
    """Two workers before the session's server."""
    options = ["--workers=2", f"--tenants={tenants}", f"--usage-file={tenants.parent / 'usage'}"]
    options.append(f"--access-log={tenants.parent / 'access'}")
    with serving("--model=m", "--server", server.target, *options) as started:
        yield started


def with_tritonclient_grpc(manager: Serve, name: str) -> Any:
    text = tritonclient.grpc.InferInput("text", [len(TEXTS), 1], "BYTES")
    text.set_data_from_numpy(np.array([[text.encode()] for text in TEXTS], dtype=np.object_))
    asked = [tritonclient.grpc.InferRequestedOutput("embedding")]
    headers = {"authorization": f"Bearer {key_of(name)}"}
    with tritonclient.grpc.InferenceServerClient(manager.target) as client:
        return client.infer("embedding", [text], outputs=asked, headers=headers, client_timeout=60)


def with_tritonclient_http(manager: Serve, name: str) -> Any:
    text = tritonclient.http.InferInput("text", [len(TEXTS), 1], "BYTES")
    text.set_data_from_numpy(np.array([[text.encode()] for text in TEXTS], dtype=np.object_))
    client = tritonclient.http.InferenceServerClient(f"127.0.0.1:{manager.http_port}")
    try:
        return client.infer("embedding", [text], headers={"X-Api-Key": key_of(name)})
    finally:
        client.close()


def with_arctic(manager: Serve, name: str) -> Any:
    with grpc.insecure_channel(manager.target) as channel:
        encode = channel.unary_unary(
            "/arctic_inference.InferenceService/Encode",
            arctic.EncodeRequest.SerializeToString,
            arctic.EncodeResponse.FromString,
        )
        request = arctic.EncodeRequest(prompts=TEXTS, n_prompts=len(TEXTS))
        return encode(request, metadata=[("x-api-key", key_of(name))], timeout=60)


def open_openai(manager: Serve, name: str, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{manager.http_port}/v1", api_key=key_of(name), **options)


def with_openai(manager: Serve, name: str) -> Any:
    with open_openai(manager, name) as client:
        return client.embeddings.create(model="m", input=TEXTS)


def with_ours(manager: Serve, name: str) -> Any:
    with EmbeddingClient(manager.target, api_key=key_of(name)) as client:
        return client.embed(TEXTS, timeout=60)


CLIENTS = [with_tritonclient_grpc, with_tritonclient_http, with_arctic, with_openai, with_ours]


@pytest.mark.parametrize("embed", CLIENTS)
def test_real_clients_get_vectors_with_a_key_and_a_plain_reason_without(
    manager: Serve, embed: Callable[[Serve, str], Any]
) -> None:
    assert embed(manager, "search")
    with pytest.raises(Exception, match="the key is not known"):
        embed(manager, "stranger")


def figure(manager: Serve, name: str, tenant: str) -> float:
    """Of the metrics."""
    url = f"http://127.0.0.1:{manager.http_port}/metrics"
    text = httpx.get(url, headers={"x-api-key": key_of("watcher")}).text
    [line] = [line for line in text.splitlines() if line.startswith(f"{name}{{") and f'tenant="{tenant}"' in line]
    return float(line.rpartition(" ")[2])


def test_the_bill_has_the_tokens_of_every_client(manager: Serve, client: EmbeddingClient) -> None:
    tokens = int(client.embed(TEXTS).num_tokens.sum())
    for embed in CLIENTS:
        before = figure(manager, "tritonembed_tenant_tokens_total", "billed")
        embed(manager, "billed")
        # Counted at once, whether the client asked for the count or not.
        assert figure(manager, "tritonembed_tenant_tokens_total", "billed") == before + tokens
    assert figure(manager, "tritonembed_tenant_requests_total", "billed") == len(CLIENTS)


def test_a_quota_holds_over_workers_and_clients_read_when_to_come_back(manager: Serve) -> None:
    def embed(_number: int) -> bool:
        # Each on a connection of its own, so that both workers get some.
        try:
            with EmbeddingClient(manager.target, api_key=key_of("limited")) as client:
                client.embed(["a"], timeout=60)
        except OverloadedError:
            return False
        return True

    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        admitted = sum(pool.map(embed, range(3 * REQUESTS)))
    # The bucket fills meanwhile.
    assert REQUESTS <= admitted <= REQUESTS + 1 + (time.monotonic() - began) * REQUESTS / 60
    assert figure(manager, "tritonembed_tenant_requests_total", "limited") == admitted

    def until_refused() -> None:
        for _ in range(REQUESTS):
            client.embeddings.create(model="m", input="a")

    refused = pytest.raises(openai.RateLimitError, match="requests per minute are used up")
    with open_openai(manager, "limited", max_retries=0) as client, refused as caught:
        until_refused()
    headers = caught.value.response.headers
    assert int(headers["retry-after"]) >= 1
    assert headers["x-ratelimit-limit-requests"] == str(REQUESTS)
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert caught.value.code == "rate_limit_exceeded"


def test_commands_take_the_key_of_the_variable(
    manager: Serve, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def run(main: Callable[..., Any], *arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        out, err = capsys.readouterr()
        assert (ended.value.code, err) == (0, "")
        return out

    at = f"127.0.0.1:{manager.http_port}"
    monkeypatch.setenv("TRITONEMBED_API_KEY", key_of("watcher"))
    assert json.loads(run(manager_app, "status", "--json", f"--manager={at}"))["model"] == "m"
    assert json.loads(run(client_main, "embed", "--server", manager.target, "--stream", "a"))["embedding"]
    report = tmp_path / "report.json"
    few = (
        "--requests=4",
        "--batch-sizes=1",
        "--prompt-length=9",
        "--warm-up=0",
        "--processes=1",
        "--json",
        str(report),
    )
    for protocol, server in (("kserve", manager.target), ("arctic", manager.target), ("openai", f"http://{at}")):
        run(bench_main, "run", f"--protocol={protocol}", f"--server={server}", f"--tokenizer={model}", *few)
        [row] = json.loads(report.read_text())["rows"]
        assert (row["requests"], row["errors"], row["wrong"]) == (4, {}, 0)
        assert "te-key" not in report.read_text()


def test_the_access_log_has_a_line_per_request_and_no_text(manager: Serve, tenants: Path) -> None:
    """Over gRPC, over HTTP, and refused: each has its id, its caller and what became of it."""
    key = {"authorization": f"Bearer {key_of('search')}"}
    text = tritonclient.grpc.InferInput("text", [1, 1], "BYTES")
    text.set_data_from_numpy(np.array([[b"nobody may read this"]], dtype=np.object_))
    with tritonclient.grpc.InferenceServerClient(manager.target) as client:
        client.infer("embedding", [text], headers={**key, "x-request-id": "over-grpc"}, client_timeout=60)
    url = f"http://127.0.0.1:{manager.http_port}/v1/embeddings"
    body = {"model": "m", "input": ["nobody may read this", "either"]}
    answer = httpx.post(url, json=body, headers={**key, "x-request-id": "over-http"})
    assert answer.headers["x-request-id"] == "over-http"
    assert httpx.post(url, json=body, headers={"x-request-id": "no-key"}).status_code == 401

    def lines() -> dict[str, Any]:
        written = (tenants.parent / "access").read_text(encoding="utf-8")
        assert "nobody may" not in written
        assert "Bearer" not in written
        return {line["tritonembed.request.id"]: line for line in map(json.loads, written.splitlines())}

    manager.until(lambda: {"over-grpc", "over-http", "no-key"} <= set(lines()))
    found = lines()
    over_grpc, over_http, refused = (found[name] for name in ("over-grpc", "over-http", "no-key"))
    assert over_grpc["rpc.method"] == "inference.GRPCInferenceService/ModelInfer"
    assert over_http["http.route"] == "/v1/embeddings"
    for line, sentences in ((over_grpc, 1), (over_http, 2)):
        assert (line["tritonembed.code"], line["tritonembed.tenant"]) == ("OK", "search")
        assert line["gen_ai.request.model"] == "m"
        assert line["tritonembed.sentences"] == sentences
        assert line["gen_ai.usage.input_tokens"] > 2 * sentences
        assert 0 < line["tritonembed.server_s"] <= line["tritonembed.duration_s"] < 60
    assert refused["tritonembed.code"] == "UNAUTHENTICATED"
    assert "tritonembed.tenant" not in refused


def test_a_new_file_counts_for_open_connections_a_wrong_one_changes_nothing_and_no_key_is_written(
    manager: Serve, tenants: Path
) -> None:
    good = tenants.read_text()
    with EmbeddingClient(manager.target, api_key=key_of("search")) as client:
        client.embed(TEXTS, timeout=60)
        tenants.write_text(good.replace(hash_of("search"), key_of("search")))
        manager.until(lambda: "the earlier tenants stay" in manager.log(), 20)
        client.embed(TEXTS, timeout=60)
        tenants.write_text(good.replace(hash_of("search"), hash_of("new")))
        manager.until(lambda: "--tenants has changed" in manager.log(), 20)
        manager.until(lambda: not serves(client), 20)
        with EmbeddingClient(manager.target, api_key=key_of("new")) as other:
            other.embed(TEXTS, timeout=60)
    log = manager.log()
    assert "tenants[0].keys[0].sha256: it must be the 64 hexadecimal digits" in log
    assert not any(word in log for word in ("te-key", hash_of("search"), str(tenants.parent), "Traceback"))


def serves(client: EmbeddingClient) -> bool:
    try:
        client.embed(TEXTS, timeout=60)
    except AuthenticationError:
        return False
    return True


def test_usage_lines_are_written_in_the_end(manager: Serve, tenants: Path) -> None:
    with_ours(manager, "billed")
    billed = figure(manager, "tritonembed_tenant_tokens_total", "billed")
    manager.process.terminate()
    assert manager.process.wait(60) == 0, manager.log()
    lines = [json.loads(line) for line in (tenants.parent / "usage").read_text().splitlines()]
    assert sum(line["tokens"] for line in lines if line["tenant"] == "billed") == billed
    assert billed > 0
