"""Alerts fire for their causes, the dashboard is one that Grafana reads, and both name metrics that exist.

promtool (Debian's prometheus) tests the alerts. Grafana does not run here; its own types read the dashboard. A real
Prometheus runs every query of the dashboard in tests/slow/test_prometheus.py.
"""

import json
import re
import subprocess
import sys
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from tests.deploy.charts import CHART, MODEL, ROOT, only, render

ALERTS = CHART / "files" / "alerts.yaml"
TESTS = ROOT / "tests" / "deploy" / "alerts.test.yaml"
DASHBOARD = CHART / "files" / "dashboards" / "tritonembed.json"
RULES = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
PANELS = json.loads(DASHBOARD.read_text())["panels"]
QUERIES = [target["expr"] for panel in PANELS for target in panel.get("targets", ())]


def promtool(*arguments: object) -> str:
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_each_alert_fires_for_its_cause_and_for_nothing_else():
    assert f"{len(RULES)} rules found" in promtool("check", "rules", ALERTS)
    promtool("test", "rules", TESTS)
    tested = TESTS.read_text(encoding="utf-8")
    assert [rule["alert"] for rule in RULES if rule["alert"] not in tested] == []


@pytest.mark.parametrize(("right", "wrong"), [(" > 30\n", " > 300\n"), ('"refused"', '"failed"'), ("14 * 86400", "1")])
def test_the_tests_of_the_alerts_see_a_wrong_rule(right, wrong, tmp_path):
    text = ALERTS.read_text(encoding="utf-8")
    assert right in text
    (tmp_path / "alerts.yaml").write_text(text.replace(right, wrong))
    tests = yaml.safe_load(TESTS.read_text(encoding="utf-8"))
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump({**tests, "rule_files": ["alerts.yaml"]}))
    done = subprocess.run(["promtool", "test", "rules", tmp_path / "tests.yaml"], capture_output=True, text=True)
    assert done.returncode == 1


def test_every_alert_says_what_to_do():
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["description"].endswith(".")


def without_defaults(value: Any) -> Any:
    """Without what is empty, which Grafana's types leave out or fill in."""
    if isinstance(value, dict):
        return {name: kept for name, one in value.items() if (kept := without_defaults(one)) not in ({}, [], None, "")}
    return [without_defaults(one) for one in value] if isinstance(value, list) else value


def missing(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Where `theirs` lacks something of ours."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [each for name in ours for each in missing(ours[name], theirs.get(name), f"{path}.{name}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [each for number, one in enumerate(ours) for each in missing(one, theirs[number], f"{path}.{number}")]
    return [] if ours == theirs else [f"{path}: {ours!r} became {theirs!r}"]


def test_grafanas_own_types_read_the_whole_dashboard():
    ours = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    read = Dashboard.from_json(json.loads(json.dumps(ours)))
    theirs = json.loads(json.dumps(read, cls=JSONEncoder))
    assert missing(without_defaults(ours), without_defaults(theirs)) == []


def test_the_dashboard_is_the_scripts():
    done = subprocess.run([sys.executable, ROOT / "scripts" / "dashboard.py"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_panels_do_not_overlap_and_have_names_of_their_own():
    places = set()
    for panel in PANELS:
        at = panel["gridPos"]
        own = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not own & places, panel["title"]
        places |= own
    assert len({panel["title"] for panel in PANELS}) == len({panel["id"] for panel in PANELS}) == len(PANELS)


@pytest.mark.parametrize("queries", [QUERIES, [rule["expr"] for rule in RULES]], ids=["dashboard", "alerts"])
def test_every_metric_exists(queries):
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    names = {name for query in queries for name in re.findall(r"tritonembed_\w+", query)}
    assert len(names) > 5
    whole = {re.sub(r"_seconds_(?:bucket|sum|count)$", "_seconds", name) for name in names}
    assert [name for name in whole if f"| `{name}` |" not in page] == []


def test_the_chart_and_compose_bring_both():
    monitoring = {"prometheusRule": {"enabled": True}, "dashboards": {"enabled": True}}
    manifests = render({**MODEL, "monitoring": monitoring})
    assert only(manifests, "PrometheusRule")["spec"]["groups"] == yaml.safe_load(ALERTS.read_text())["groups"]
    found = only(manifests, "ConfigMap", "-tritonembed")["data"]
    assert {name: json.loads(text) for name, text in found.items()} == {
        DASHBOARD.name: json.loads(DASHBOARD.read_text(encoding="utf-8"))
    }
    folder = ROOT / "deploy" / "compose"
    services = yaml.safe_load((folder / "compose.yaml").read_text(encoding="utf-8"))["services"]
    for service, file, inside in (
        ("prometheus", ALERTS, "/etc/prometheus/rules"),
        ("grafana", DASHBOARD, "/var/lib/grafana/dashboards"),
    ):
        (source,) = [volume.split(":")[0] for volume in services[service]["volumes"] if f":{inside}:" in volume]
        assert (folder / source).resolve() == file.parent
    assert yaml.safe_load((folder / "prometheus.yaml").read_text())["rule_files"] == ["/etc/prometheus/rules/*.yaml"]
