"""The page of metrics, made of the code that exports them: `generate.py` writes it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from tritonembed_engine.stub import metrics as engine
from tritonembed_manager.router.apis.http.prometheus import Answered, OfTenants, Standing
from tritonembed_manager.router.data.metrics import WorkerMetrics
from tritonembed_manager.router.interfaces import ServerState, ServerView

ENGINE: Sequence[tuple[str, Mapping[str, str], tuple[str, ...]]] = (
    ("replica", engine.EMBEDDER_COUNTERS | engine.LOAD_GAUGES, ()),
    ("replica", engine.EXECUTOR_INFO, ("executor", "embedding_space")),
    ("replica", engine.BUILD_INFO, ("version",)),
    ("replica with a [cache](../guides/repeated-texts.md)", engine.CACHE_METRICS, ()),
    ("replica in [int8](../concepts/executors.md#int8)", engine.QUALITY_METRICS, ()),
    ("tokenizer", engine.TOKENIZER_COUNTERS, ()),
)
"""Of which process, metrics, and labels beside `instance`."""
PAGE = """# Metrics

Every metric of the engine and of the manager. [Observability](../guides/observability.md) has the dashboard, the alerts
and useful expressions; [autoscaling](../guides/autoscaling.md) uses `tritonembed_load` and
`tritonembed_work_seconds_total`.

## Of the engine

On a server's metrics port (8002), in addition to Triton's own (`nv_…`, such as `nv_gpu_memory_used_bytes`),
with the label `instance`, which Prometheus renames to `exported_instance`. Replicas and tokenizers hand them over
twice per second. Sentences and tokens from the cache are in none but the cache's.

{engine}
## Of the manager

On its HTTP port at `/metrics`, together with every server's own metrics, which get the label `server`. Workers add up.
Latencies are those of OK answers. `tritonembed_load` and `tritonembed_build_info` exist in both: the manager's have no
label `instance` of their own, and its `tritonembed_load` has a label `server`.

{manager}
With tenants whose [limits are for a model](../guides/keys.md#limits-for-a-model) there are
`tritonembed_tenant_model_…`, too: the same as `tritonembed_tenant_…` with the label `model`. With
[`--data-plane envoy`](../guides/envoy.md#operating-it) also Envoy's own: `envoy_cluster_…` with the label
`envoy_cluster_name`, `envoy_http_…`, `envoy_overload_…`, `envoy_server_…`; the manager's histograms and
`tritonembed_load` then show only what Envoy leaves to the workers.

With tracing, a scrape that accepts `application/openmetrics-text`, as Prometheus' does, gets
[exemplars](../guides/observability.md#from-a-slow-bucket-to-its-trace).

## `/status`

`GET /status` and `tritonembed-manager status --json` give the manager as one JSON object:

| field | |
|---|---|
| `version`, `model`, `policy`, `time`, `uptime_s` | the manager |
| `draining`, `lame_duck`, `warnings` | whether it ends, and what its operator should know |
| `workers` | `count`, `ready`, `restarts` |
| `totals` | `in_flight`, `waiting`, `requests`, `errors`, `rate`, `p50_ms`, `p99_ms`, `tokens`, `token_rate`, \
`client_errors`, `service_errors`, `ejections`, `retries`, `moves`, `replicas`, `ready`, `servers`, `restarts` |
| `servers` | per server: `id`, `address`, `state`, `why`, `for_s` (in this state), \
`space` ([of its vectors](../concepts/embedding-space.md)), \
`quantization_quality` ([what int8 keeps](../concepts/executors.md#int8); null in other precisions), `in_flight`, \
`work_bytes`, and the figures of `totals` |
| `envoy` | only with `--data-plane envoy`: `ready`, `restarts`, `threads` |
| `age_s` | only if the parent process hangs: how old the status is |

`GET /status/history` has the figures of the last minutes, one point per second.
"""


def page() -> str:
    """The page in Markdown."""
    return PAGE.replace("{engine}", _engine()).replace("{manager}", _manager())


def _engine() -> str:
    lines = ["| metric | of each | kind | labels | |", "|---|---|---|---|---|"]
    for source, described, more in ENGINE:
        labels = _labels(("instance", *more))
        for name, text in described.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines.append(f"| `{name}` | {source} | {kind} | {labels} | {text} |")
    return "\n".join([*lines, ""])


def _manager() -> str:
    registry = CollectorRegistry()
    WorkerMetrics(registry)
    labels = {
        name: each._labelnames
        for each, names in registry._collector_to_names.items()
        if isinstance(each, MetricWrapperBase)
        for name in names
    }
    view = ServerView("0", 0, "", None, None, ServerState.READY, launched=True, space="a", version="b")
    with_samples = [*Standing([view], 1.0).collect(), *Answered({"0": True}).collect()]
    rows = [_row(metric, labels[metric.name]) for metric in registry.collect()]
    rows += [_row(metric, metric.samples[0].labels) for metric in with_samples]
    rows += [_row(metric, metric._labelnames) for metric in OfTenants.described()]
    return "\n".join(["| metric | kind | labels | |", "|---|---|---|---|", *sorted(rows), ""])


def _row(metric: Any, labels: Iterable[str]) -> str:
    name = metric.name + "_total" * (metric.type == "counter")
    return f"| `{name}` | {metric.type} | {_labels(labels)} | {metric.documentation.removesuffix('.')} |"


def _labels(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
