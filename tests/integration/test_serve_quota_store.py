"""Two real managers that count quotas together in a real Redis, with it and without it."""

import json
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.redis_server import RedisServer
from tests.fakes.tenants import key_of, write_tenants
from tests.fakes.threaded import fake_triton
from tests.integration.serve import Serve, serving

from tritonembed import EmbeddingClient, OverloadedError

REQUESTS = 60
"""Per minute: one comes back per second."""


def admitted(manager: Serve, most: int) -> int:
    """Requests that the manager answers before it refuses one."""
    with EmbeddingClient(manager.target, api_key=key_of("a")) as client:
        for count in range(most):
            try:
                client.embed(["a text"], timeout=60)
            except OverloadedError:
                return count
    return most


def admitted_to_the_model(manager: Serve, most: int) -> int:
    """Requests that the manager answers before it refuses one for the tenant's limit for the model."""
    with EmbeddingClient(manager.target, api_key=key_of("c")) as client:
        for count in range(most):
            try:
                client.embed(["a text"], timeout=60)
            except OverloadedError:
                with pytest.raises(OverloadedError, match=f"{REQUESTS} requests per minute for m are used up"):
                    client.embed(["a text"] * 2 * REQUESTS, batch_size=1, timeout=60)
                return count
            # Counts are exchanged meanwhile.
            time.sleep(0.05)
    return most


def get(manager: Serve, path: str, name: str) -> Any:
    """Headers and JSON of an answer to a tenant."""
    request = urllib.request.Request(f"http://127.0.0.1:{manager.http_port}{path}", headers={"x-api-key": key_of(name)})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.headers, json.load(answer)


def remaining(manager: Serve) -> int:
    """Requests that the manager would admit now."""
    return int(get(manager, "/v1/models", "a")[0]["x-ratelimit-remaining-requests"])


def warnings(manager: Serve) -> Any:
    """Of the status."""
    return get(manager, "/status", "b")[1]["warnings"]


def test_managers_count_together_and_go_on_alone_while_redis_is_away(tmp_path: Path) -> None:
    of_model = f"model_limits: {{m: {{requests_per_minute: {REQUESTS}}}}}"
    tenants = write_tenants(tmp_path / "tenants", a=f"requests_per_minute: {REQUESTS}", b="monitor: true", c=of_model)
    with RedisServer() as redis, fake_triton() as server:
        options = ("--model=m", "--server", server.address, f"--tenants={tenants}")
        store = {"TRITONEMBED_QUOTA_STORE": redis.url}
        with serving(*options, **store) as first, serving(*options, **store) as second:
            began = time.monotonic()
            assert admitted(first, REQUESTS // 2) == REQUESTS // 2
            assert remaining(second) == REQUESTS
            # A manager asks for the counts of tenants that use it. They may come in two exchanges.
            found = admitted(second, 1)
            second.until(
                lambda: (passed := time.monotonic() - began) > 10 or remaining(second) <= REQUESTS // 2 + passed, 20
            )
            found += REQUESTS // 2 + admitted(second, 2 * REQUESTS)
            assert found <= REQUESTS + 1 + (time.monotonic() - began)
            began = time.monotonic()
            assert admitted_to_the_model(first, REQUESTS // 2) == REQUESTS // 2
            found = REQUESTS // 2 + admitted_to_the_model(second, 2 * REQUESTS)
            assert found <= REQUESTS + 1 + (time.monotonic() - began)
            redis.kill()
            for manager in (first, second):
                manager.until(lambda manager=manager: any("1/2 of their" in line for line in warnings(manager)), 20)
            assert all(remaining(manager) <= REQUESTS // 2 for manager in (first, second))
            redis.start()
            first.until(lambda: "quotas are counted together" in first.log(), 20)
            first.until(lambda: not warnings(first), 20)
            for manager in (first, second):
                assert "Traceback" not in manager.log()
                assert str(redis.port) not in manager.log()
