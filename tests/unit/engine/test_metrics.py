"""Counters on their way to Triton."""

import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tritonembed_engine.stub import metrics
from tritonembed_engine.stub.metrics import (
    BUILD_INFO,
    CACHE_METRICS,
    EMBEDDER_COUNTERS,
    EXECUTOR_INFO,
    LOAD_GAUGES,
    QUALITY_METRICS,
    TOKENIZER_COUNTERS,
    EngineMetrics,
)


class FakeMetric:
    def __init__(self, labels: dict[str, str]) -> None:
        self.labels = labels
        self.value = 0.0
        self.calls = 0
        self.incremented = threading.Event()

    def increment(self, amount: float) -> None:
        self.value += amount
        self.calls += 1
        self.incremented.set()

    def set(self, value: float) -> None:
        self.value = value


class FakeFamily:
    """pb_utils.MetricFamily. An instance makes one metric per family."""

    COUNTER, GAUGE = "counter", "gauge"
    made: ClassVar[dict[str, "FakeFamily"]] = {}

    def __init__(self, name: str, description: str, kind: str) -> None:
        assert name not in self.made
        self.description, self.kind = description, kind
        self.made[name] = self

    def Metric(self, labels: dict[str, str]) -> FakeMetric:
        self.metric = FakeMetric(labels)
        return self.metric


class FakeTriton:
    """The part of pb_utils that metrics use."""

    MetricFamily = FakeFamily


def value(name: str) -> float:
    return FakeFamily.made[f"tritonembed_{name}_total"].metric.value


@pytest.fixture(autouse=True)
def _nothing_made(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(FakeFamily, "made", {})
    yield
    assert not any(thread.name == "metrics" for thread in threading.enumerate())


@pytest.mark.parametrize("counters", [EMBEDDER_COUNTERS, TOKENIZER_COUNTERS])
def test_every_counter_exists_from_the_start_with_the_label_of_its_instance(counters: dict[str, str]) -> None:
    EngineMetrics(FakeTriton, "embedder_0_1", counters).close()
    assert list(FakeFamily.made) == list(counters)
    for name, family in FakeFamily.made.items():
        assert (family.kind, family.description) == ("counter", counters[name])
        assert (family.metric.labels, family.metric.value) == ({"instance": "embedder_0_1"}, 0)


def test_the_documentation_names_every_metric() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    for name in [*EMBEDDER_COUNTERS, *LOAD_GAUGES, *BUILD_INFO, *EXECUTOR_INFO, *CACHE_METRICS]:
        assert f"`{name}`" in text
    for name in [*QUALITY_METRICS, *TOKENIZER_COUNTERS]:
        assert f"`{name}`" in text


def test_the_executor_that_runs_is_a_label_of_a_gauge_of_one() -> None:
    EngineMetrics(FakeTriton, "e", EMBEDDER_COUNTERS, executor="direct", embedding_space="a-b").close()
    info = FakeFamily.made["tritonembed_executor_info"]
    assert (info.kind, info.metric.value) == ("gauge", 1)
    assert info.metric.labels == {"instance": "e", "executor": "direct", "embedding_space": "a-b"}


def test_a_gauge_goes_up_and_down() -> None:
    counts = EngineMetrics(FakeTriton, "e", CACHE_METRICS)
    for change in (5000, -2000):
        counts.add(cache_bytes=change, cache_evictions=1)
    counts.close()
    gauge = FakeFamily.made["tritonembed_cache_bytes"]
    assert (gauge.kind, gauge.metric.value, value("cache_evictions")) == ("gauge", 3000, 2)


def test_gauges_of_the_load_are_read_when_they_are_handed_over() -> None:
    loads = [{"load": 2.5, "queued_requests": 3, "running_requests": 1}]
    counts = EngineMetrics(FakeTriton, "e", LOAD_GAUGES, lambda: loads[0])
    loads[0] = {"load": 0.5, "queued_requests": 0, "running_requests": 2}
    counts.close()
    values = {name: family.metric.value for name, family in FakeFamily.made.items()}
    assert values == {
        "tritonembed_load": 0.5,
        "tritonembed_queued_requests": 0,
        "tritonembed_running_requests": 2,
    }
    assert {family.kind for family in FakeFamily.made.values()} == {"gauge"}


def test_the_version_is_a_label_of_a_gauge_of_one() -> None:
    EngineMetrics(FakeTriton, "e", {}, executor="direct").close()
    info = FakeFamily.made["tritonembed_build_info"]
    assert (info.kind, info.metric.value) == ("gauge", 1)
    assert info.metric.labels == {"instance": "e", "version": version("tritonembed")}


def test_counts_arrive_without_closing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "PERIOD_SECONDS", 0.001)
    counts = EngineMetrics(FakeTriton, "e", EMBEDDER_COUNTERS)
    try:
        counts.add(tokens=50, queue_seconds=0.25)
        for name, expected in (("tokens", 50), ("queue_seconds", 0.25)):
            assert FakeFamily.made[f"tritonembed_{name}_total"].metric.incremented.wait(60)
            assert value(name) == expected
    finally:
        counts.close()


def test_closing_hands_over_the_rest_in_one_call_per_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "PERIOD_SECONDS", 3600.0)
    counts = EngineMetrics(FakeTriton, "e", EMBEDDER_COUNTERS)

    def count(_: Any) -> None:
        for _ in range(250):
            counts.add(sentences=2, tokens=100, batches=1)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(count, range(4)))
    assert value("tokens") == 0
    counts.close()
    assert (value("sentences"), value("tokens"), value("batches")) == (2000, 100_000, 1000)
    assert FakeFamily.made["tritonembed_tokens_total"].metric.calls == 1
    assert FakeFamily.made["tritonembed_compute_seconds_total"].metric.calls == 0


def test_closing_frees_every_metric() -> None:
    """If they were freed later, after Triton's memory, the process would crash at its end."""
    counts = EngineMetrics(FakeTriton, "e", EMBEDDER_COUNTERS, executor="direct")
    made = [*FakeFamily.made.values(), *(family.metric for family in FakeFamily.made.values())]
    held = [weakref.ref(each) for each in made]
    made.clear()
    FakeFamily.made.clear()
    assert all(each() for each in held)
    counts.close()
    assert not any(each() for each in held)
