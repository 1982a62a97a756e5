"""The Helm chart, rendered without a cluster by the library that Helm itself is made of."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from helm_python.chart import Chart

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "tritonembed"
EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))
MODEL = {"model": {"name": "BAAI/bge-base-en-v1.5"}}


def example(name: str) -> dict[str, Any]:
    """The values of examples/NAME.yaml."""
    return yaml.safe_load((CHART / "examples" / f"{name}.yaml").read_text(encoding="utf-8"))


def render(values: dict[str, Any], chart: Path = CHART) -> list[dict[str, Any]]:
    """The manifests of a release `embeddings` in the namespace `search`."""
    return json.loads(_rendered(json.dumps(values), chart))


@cache
def _rendered(values: str, chart: Path) -> str:
    with Chart.load(chart) as loaded:
        files = loaded.render(json.loads(values), name="embeddings", namespace="search")
    manifests = [text for path, text in files.items() if path.endswith(".yaml")]
    return json.dumps([document for text in manifests for document in yaml.safe_load_all(text) if document])


def only(manifests: list[dict[str, Any]], kind: str, suffix: str = "") -> dict[str, Any]:
    """The one manifest of this kind whose name ends like this."""
    found = [one for one in manifests if one["kind"] == kind and one["metadata"]["name"].endswith(suffix)]
    assert len(found) == 1, (kind, suffix, len(found))
    return found[0]


def pod(manifests: list[dict[str, Any]], component: str) -> dict[str, Any]:
    """The template of the pods of a component: server or manager."""
    return only(manifests, "Deployment", f"-{component}")["spec"]["template"]


def container(manifests: list[dict[str, Any]], component: str) -> dict[str, Any]:
    """The one container of these pods."""
    (found,) = pod(manifests, component)["spec"]["containers"]
    return found


def option(manifests: list[dict[str, Any]], component: str, name: str) -> str | None:
    """The value of an option on a component's command line; None if it is not there."""
    found = [text.partition("=")[2] for text in container(manifests, component)["args"] if text.startswith(f"{name}=")]
    return found[0] if found else None
