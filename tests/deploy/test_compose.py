"""compose.yaml follows the Compose specification, and what it names is there. No Docker daemon runs it here."""

import re
import subprocess
from typing import Any

import pytest
import yaml
from tests.deploy.charts import MODEL, ROOT, only, render
from typer.testing import CliRunner

from tritonembed_manager.commands.app import app
from tritonembed_manager.router.control import supervisor
from tritonembed_manager.server import foreground

FOLDER = ROOT / "deploy" / "compose"
SERVICES: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))["services"]
OURS = ("server-cpu", "server-gpu", "manager")


def setting(name: str) -> str:
    """A variable of .env."""
    return dict(line.split("=", 1) for line in (FOLDER / ".env").read_text().splitlines())[name]


def command(service: str) -> list[str]:
    return [word.replace("${MODEL:?}", setting("MODEL")) for word in SERVICES[service]["command"]]


def seconds(text: str) -> float:
    assert text.endswith("s")
    return float(text[:-1])


def test_it_follows_the_specification():
    check = ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(FOLDER / "compose.yaml")]
    done = subprocess.run([ROOT / ".venv" / "bin" / check[0], *check[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_cpu_is_the_default():
    assert SERVICES["server-cpu"]["profiles"] == [setting("COMPOSE_PROFILES")]
    assert [name for name, service in SERVICES.items() if "profiles" not in service] == [
        "manager",
        "prometheus",
        "grafana",
        "collector",
    ]


def test_the_programs_accept_their_commands(monkeypatch):
    served, started = [], []
    monkeypatch.setattr(supervisor, "run_serve", served.append)
    monkeypatch.setattr(foreground, "run_replica", lambda server, **rest: started.append(server))
    for arguments in (command("manager"), ["replica", *command("server-cpu")]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
    assert seconds(SERVICES["manager"]["stop_grace_period"]) > served[0].lame_duck + served[0].drain_timeout
    for name in ("server-cpu", "server-gpu"):
        assert seconds(SERVICES[name]["stop_grace_period"]) > started[0].drain_timeout
    assert SERVICES["server-gpu"]["command"] == SERVICES["server-cpu"]["command"]


def test_the_manager_looks_up_the_name_that_servers_have():
    (name,) = re.findall(r"--servers-dns=(\w+):", " ".join(command("manager")))
    for service in ("server-cpu", "server-gpu"):
        assert SERVICES[service]["networks"]["default"]["aliases"] == [name]
    scrape = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())["scrape_configs"]
    assert scrape[1]["dns_sd_configs"][0]["names"] == [name]


def test_images_of_ours_are_targets_of_the_dockerfile():
    targets = re.findall(r"^FROM .* AS ([\w-]+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    for name in OURS:
        build = SERVICES[name]["build"]
        assert (FOLDER / build["context"]).resolve() == ROOT
        assert build["target"] in targets


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_no_rights_and_its_files_exist(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        assert not source.startswith(".") or (FOLDER / source).exists(), volume


def test_metrics_are_dropped_as_the_chart_drops_them():
    manifests = render({**MODEL, "monitoring": {"serviceMonitor": {"enabled": True}}})
    (endpoint,) = only(manifests, "ServiceMonitor", "-manager")["spec"]["endpoints"]
    scrape = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())["scrape_configs"][0]
    rules = [(one["source_labels"], one["regex"], one["action"]) for one in scrape["metric_relabel_configs"]]
    asked = [(one["sourceLabels"], one["regex"], one["action"]) for one in endpoint["metricRelabelings"]]
    assert rules == asked
