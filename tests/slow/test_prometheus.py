"""A real Prometheus scrapes a real manager and its server under load, and runs every query of dashboard and alerts."""

import json
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.fakes.tenants import key_of, write_tenants
from tests.integration.serve import Serve, serving

from tritonembed import EmbeddingClient, OverloadedError
from tritonembed_perf.server import free_ports

FILES = Path(__file__).resolve().parents[2] / "deploy" / "helm" / "tritonembed" / "files"
COMPOSE = Path(__file__).resolve().parents[2] / "deploy" / "compose" / "prometheus.yaml"
NOT_HERE = ("GPU memory", "GPU use", "Until the certificate expires")
"""Panels of what the test has not: a GPU, and TLS."""
PERIOD_S = 1


class Prometheus:
    """A Prometheus with Compose's settings: the chart's alerts, and the same relabelling."""

    def __init__(self, folder: Path, manager: Serve) -> None:
        (self._port,) = free_ports(1)
        settings = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
        settings["global"] = {"scrape_interval": f"{PERIOD_S}s", "evaluation_interval": f"{PERIOD_S}s"}
        settings["rule_files"] = [str(FILES / "alerts.yaml")]
        managers, servers = settings["scrape_configs"]
        managers["static_configs"] = [{"targets": [f"127.0.0.1:{manager.http_port}"]}]
        del servers["dns_sd_configs"]
        servers["static_configs"] = [{"targets": [manager.server("server-0")["metrics_address"]]}]
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(settings))
        command = [
            "prometheus",
            f"--config.file={folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={folder / 'data'}",
        ]
        command += [f"--web.listen-address=127.0.0.1:{self._port}", "--enable-feature=exemplar-storage"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def get(self, path: str, **parameters: object) -> Any:
        """The data of an answer of its API."""
        url = f"http://127.0.0.1:{self._port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            found = json.load(answer)
        assert found["status"] == "success", found
        return found["data"]

    def query(self, expression: str) -> list[Any]:
        return list(self.get("query", query=expression)["result"])


@pytest.fixture(scope="module")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    limits = {"search": "weight: 2", "limited": "requests_per_minute: 1"}
    return write_tenants(tmp_path_factory.mktemp("tenants") / "tenants.yaml", **limits)


@pytest.fixture(scope="module")
def manager(model: Path, tenants: Path) -> Iterator[Serve]:
    arguments = ["--model", model, "--device=cpu", "--num-replicas=1", "--tokenizer-instances=1", "--workers=2"]
    with serving(
        *arguments,
        "--no-reference",
        "--cache-bytes=1000000",
        f"--tenants={tenants}",
        "--hedge-after=0.001",
        "--no-key-for-metrics",
    ) as started:
        yield started


@pytest.fixture(scope="module")
def prometheus(manager: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It has scraped the manager under load for a while."""
    with ExitStack() as stack:
        search = stack.enter_context(EmbeddingClient(manager.target, api_key=key_of("search")))
        search.embed(["a first text"])
        running = Prometheus(tmp_path_factory.mktemp("prometheus"), manager)
        stack.callback(running.process.wait)
        stack.callback(running.process.kill)
        limited = stack.enter_context(EmbeddingClient(manager.target, api_key=key_of("limited")))
        end = time.monotonic() + 15 * PERIOD_S
        number = 0
        while time.monotonic() < end:
            number += 1
            priority = "interactive" if number % 2 else "bulk"
            search.embed([f"text {number} {'word ' * 100}"] * 8, priority=priority)
            if number % 10 == 0:
                with suppress(OverloadedError):
                    limited.embed(["too much"])
        yield running


def test_both_are_scraped_and_their_metrics_are_stored_once(prometheus: Prometheus) -> None:
    targets = prometheus.get("targets")["activeTargets"]
    assert [(one["labels"]["job"], one["health"], one["lastError"]) for one in targets] == [
        ("manager", "up", ""),
        ("server", "up", ""),
    ]
    (tokens,) = prometheus.query("count by (job) (tritonembed_tokens_total)")
    assert tokens["metric"] == {"job": "server"}


def panels() -> list[Any]:
    dashboard = json.loads((FILES / "dashboards" / "tritonembed.json").read_text(encoding="utf-8"))
    return [pytest.param(panel, id=panel["title"]) for panel in dashboard["panels"] if "targets" in panel]


@pytest.mark.parametrize("panel", panels())
def test_every_query_of_a_panel_has_an_answer(panel: dict[str, Any], prometheus: Prometheus) -> None:
    for target in panel["targets"]:
        expression = target["expr"].replace("$__rate_interval", f"{10 * PERIOD_S}s").replace("$namespace", ".*")
        found = prometheus.query(expression)
        assert bool(found) == (panel["title"] not in NOT_HERE), expression
        values = [float(one["value"][1]) for one in found]
        # A share of nothing is no number.
        assert panel["title"] == "Vectors from the cache" or all(value == value for value in values), expression


def test_no_alert_fires_for_a_service_that_is_well_but_for_the_tenant_that_is_refused(prometheus: Prometheus) -> None:
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert len(rules) >= 10
    assert [rule["name"] for rule in rules if rule["health"] != "ok"] == []
    assert [rule["name"] for rule in rules if rule["state"] == "firing"] == []
