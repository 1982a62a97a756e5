"""Writes the Grafana dashboard: deploy/helm/tritonembed/files/dashboards/tritonembed.json.

    python scripts/dashboard.py

Exit code 1: the file was not current, and is now. The chart makes a ConfigMap of it, and Compose's Grafana reads it.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parents[1] / "deploy/helm/tritonembed/files/dashboards/tritonembed.json"
OURS = 'namespace=~"$namespace"'
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_COLUMNS, _HEIGHT = 24, 8


@dataclass(frozen=True)
class Panel:
    """A chart, or a table of labels. queries: PromQL by legend; `OURS` in it stands for the chosen namespaces."""

    title: str
    queries: dict[str, str]
    unit: str = "short"
    text: str = ""
    stacked: bool = False
    exemplars: bool = False
    table: bool = False
    width: int = 8


def rate(metric: str, *, by: str = "", more: str = "") -> str:
    """The sum of a counter's rates."""
    labels = OURS + (f", {more}" if more else "")
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{{{labels}}}[$__rate_interval]))"


def increase(metric: str, *, by: str) -> str:
    """By how much a counter grows from one point of the chart to the next."""
    return f"sum by ({by}) (increase({metric}{{{OURS}}}[$__rate_interval]))"


def total(metric: str, *, by: str = "", more: str = "") -> str:
    """The sum of a gauge."""
    labels = OURS + (f", {more}" if more else "")
    return f"sum{f' by ({by})' if by else ''} ({metric}{{{labels}}})"


def percentile(share: float, metric: str, *by: str) -> str:
    """Of a histogram."""
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', by=', '.join((*by, 'le')))})"


def mean(metric: str) -> str:
    """Of a histogram."""
    return f"{rate(f'{metric}_sum')} / {rate(f'{metric}_count')}"


def ratio(part: str, whole: str, *, by: str = "") -> str:
    """Of two counters' rates."""
    return f"{rate(part, by=by)} / {rate(whole, by=by)}"


_ENGINES_WAIT = ratio("tritonembed_queue_seconds_total", "tritonembed_embedded_requests_total")
_ENGINES_COMPUTE = ratio("tritonembed_request_compute_seconds_total", "tritonembed_embedded_requests_total")
_AT_SERVERS = mean("tritonembed_server_request_duration_seconds")
_EXPIRY = "tritonembed_certificate_expiry_timestamp_seconds"
_MANAGERS = 'server!="", exported_instance=""'
"""The managers' `tritonembed_load`, without the engine's."""

ROWS: dict[str, tuple[Panel, ...]] = {
    "What is served": (
        Panel("Tokens per second", {"tokens": rate("tritonembed_tokens_total")}, "short"),
        Panel("Sentences per second", {"sentences": rate("tritonembed_sentences_total")}, "short"),
        Panel(
            "Requests per second, by code",
            {"{{code}}": rate("tritonembed_requests_total", by="code")},
            "reqps",
            stacked=True,
        ),
        Panel(
            "Latency",
            {
                "p50": percentile(0.5, "tritonembed_request_duration_seconds"),
                "p99": percentile(0.99, "tritonembed_request_duration_seconds"),
            },
            "s",
            "From a request's arrival at a manager to its answer. Exemplars lead to traces.",
            exemplars=True,
        ),
        Panel(
            "p99 by model",
            {
                "{{model}} {{version}}": percentile(
                    0.99, "tritonembed_model_request_duration_seconds", "model", "version"
                )
            },
            "s",
        ),
        Panel(
            "Tokens per second, by model",
            {"{{model}} {{version}}": rate("tritonembed_model_tokens_total", by="model, version")},
            stacked=True,
        ),
    ),
    "Where the time goes": (
        Panel(
            "Mean time to an answer, by stage",
            {
                "waits in the manager": mean("tritonembed_queue_wait_seconds"),
                "waits in the engine": _ENGINES_WAIT,
                "computed": _ENGINES_COMPUTE,
                "Triton, tokenizer, network": f"{_AT_SERVERS} - {_ENGINES_WAIT} - {_ENGINES_COMPUTE}",
            },
            "s",
            "Large requests are sent in parts, so the last stage is about right only for small ones.",
            stacked=True,
            width=12,
        ),
        Panel(
            "p99 by stage",
            {
                "waits in the manager, priority {{priority}}": percentile(
                    0.99, "tritonembed_queue_wait_seconds", "priority"
                ),
                "at server {{server}}": percentile(0.99, "tritonembed_server_request_duration_seconds", "server"),
            },
            "s",
            width=12,
        ),
    ),
    "Load": (
        Panel("Work before each server", {"{{server}}": total("tritonembed_load", by="server", more=_MANAGERS)}, "s"),
        Panel(
            "Servers kept busy, and servers",
            {
                "kept busy": rate("tritonembed_work_seconds_total"),
                "ready": f'max(sum by (instance) (tritonembed_server_state{{{OURS}, state="ready"}}))',
            },
            text="Aim at 70 %: docs/guides/autoscaling.md.",
        ),
        Panel(
            "Requests in flight, and those that wait",
            {"in flight": total("tritonembed_requests_in_flight"), "wait": total("tritonembed_requests_waiting")},
        ),
        Panel(
            "Queue by priority and tenant",
            {"{{priority}} {{tenant}}": total("tritonembed_requests_queued", by="priority, tenant")},
            stacked=True,
        ),
        Panel(
            "Tokens per second, by tenant",
            {"{{tenant}}": rate("tritonembed_tenant_tokens_total", by="tenant")},
            stacked=True,
        ),
        Panel(
            "Refused, by tenant and limit",
            {"{{tenant}}: {{limit}}": rate("tritonembed_tenant_refused_requests_total", by="tenant, limit")},
            "reqps",
        ),
    ),
    "Engines": (
        Panel(
            "Batch fill",
            {
                "{{instance}}": ratio(
                    "tritonembed_tokens_total", "tritonembed_batch_capacity_tokens_total", by="instance"
                )
            },
            "percentunit",
        ),
        Panel(
            "Tokens per batch",
            {"{{instance}}": ratio("tritonembed_tokens_total", "tritonembed_batches_total", by="instance")},
        ),
        Panel(
            "Requests in the engines",
            {"wait": total("tritonembed_queued_requests"), "computed": total("tritonembed_running_requests")},
        ),
        Panel(
            "Vectors from the cache",
            {
                "share": f"{rate('tritonembed_cache_hits_total')} / ({rate('tritonembed_cache_hits_total')} + "
                f"{rate('tritonembed_cache_shared_total')} + {rate('tritonembed_cache_misses_total')})"
            },
            "percentunit",
        ),
        Panel(
            "Truncated texts",
            {"share": ratio("tritonembed_truncated_sentences_total", "tritonembed_tokenized_sentences_total")},
            "percentunit",
        ),
        Panel(
            "Dropped and refused by the engines",
            {
                "deadline": rate("tritonembed_expired_requests_total"),
                "wrong": rate("tritonembed_refused_requests_total"),
            },
            "reqps",
        ),
    ),
    "Machines": (
        Panel(
            "GPU memory",
            {"{{instance}} {{gpu_uuid}}": total("nv_gpu_memory_used_bytes", by="instance, gpu_uuid")},
            "bytes",
        ),
        Panel(
            "GPU use",
            {"{{instance}} {{gpu_uuid}}": total("nv_gpu_utilization", by="instance, gpu_uuid")},
            "percentunit",
        ),
        Panel("Memory", {"{{instance}}": total("nv_cpu_memory_used_bytes", by="instance")}, "bytes"),
    ),
    "Servers": (
        Panel(
            "Servers by state",
            {"{{state}}": f"max by (state) (sum by (instance, state) (tritonembed_server_state{{{OURS}}}))"},
            stacked=True,
        ),
        Panel(
            "Found broken, started again",
            {
                "broken: {{server}}": increase("tritonembed_server_ejections_total", by="server"),
                "started again: {{server}}": increase("tritonembed_server_restarts_total", by="server"),
            },
        ),
        Panel(
            "Sent again",
            {
                "retries": rate("tritonembed_retries_total"),
                "failovers": rate("tritonembed_moves_total"),
                "hedges {{outcome}}": rate("tritonembed_hedges_total", by="outcome"),
            },
            "reqps",
        ),
        Panel(
            "Embedding spaces",
            {"": f"count by (model, version, embedding_space, server) (tritonembed_server_space_info{{{OURS}}})"},
            text="Servers of a model and version have one space, or some of them are refused.",
            table=True,
        ),
        Panel(
            "Versions and executors",
            {
                "": f"count by (version, instance) (tritonembed_build_info{{{OURS}}}) "
                f"or count by (executor, instance) (tritonembed_executor_info{{{OURS}}})"
            },
            table=True,
        ),
        Panel(
            "Until the certificate expires",
            {"{{instance}}": f"min by (instance) ({_EXPIRY}{{{OURS}}}) - time()"},
            "s",
        ),
    ),
}


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    return {
        "title": "tritonembed",
        "uid": "tritonembed",
        "tags": ["tritonembed", "triton"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "graphTooltip": 1,
        "templating": {
            "list": [
                {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
                {
                    "name": "namespace",
                    "label": "Namespace",
                    "type": "query",
                    "datasource": DATASOURCE,
                    "query": "label_values(tritonembed_requests_in_flight, namespace)",
                    "includeAll": True,
                    "multi": True,
                    # Also series without such a label, outside of Kubernetes.
                    "allValue": ".*",
                    "current": {"text": "All", "value": "$__all"},
                    "refresh": 2,
                },
            ]
        },
        "panels": list(_panels()),
    }


def _panels() -> Iterator[dict[str, Any]]:
    number, top = 0, 0
    for title, panels in ROWS.items():
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "gridPos": {"x": 0, "y": top, "w": _COLUMNS, "h": 1},
            "panels": [],
        }
        top, left = top + 1, 0
        for panel in panels:
            if left + panel.width > _COLUMNS:
                top, left = top + _HEIGHT, 0
            number += 1
            yield _panel(panel, number, {"x": left, "y": top, "w": panel.width, "h": _HEIGHT})
            left += panel.width
        top += _HEIGHT


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    custom = {"fillOpacity": 20, "stacking": {"mode": "normal"}} if panel.stacked else {"fillOpacity": 0}
    return {
        "id": number,
        "type": "table" if panel.table else "timeseries",
        "title": panel.title,
        "description": panel.text,
        "gridPos": place,
        "datasource": DATASOURCE,
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0, "custom": {} if panel.table else custom},
            "overrides": [],
        },
        "options": {} if panel.table else {"legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": [
            {
                "refId": chr(ord("A") + place_of),
                "datasource": DATASOURCE,
                "expr": query,
                "legendFormat": legend,
                "exemplar": panel.exemplars,
                "instant": panel.table,
                "range": not panel.table,
                "format": "table" if panel.table else "time_series",
            }
            for place_of, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def main() -> str | None:
    """Write what is not current; what to print then."""
    text = json.dumps(dashboard(), indent=1) + "\n"
    if FILE.exists() and FILE.read_text(encoding="utf-8") == text:
        return None
    FILE.write_text(text, encoding="utf-8")
    return f"{FILE.name} did not show scripts/dashboard.py, and now does: commit it"


if __name__ == "__main__":
    sys.exit(main())
