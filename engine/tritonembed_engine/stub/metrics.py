"""The engine's own metrics on Triton's metrics port.

A call of `MetricFamily` goes from the stub to the server and back. So counts are collected here, and a thread hands
them over once per period.
"""

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

PERIOD_SECONDS = 0.5
_DISTRIBUTION = "tritonembed"
_COUNTED = "_total"

EMBEDDER_COUNTERS = {
    "tritonembed_sentences_total": "Sentences embedded",
    "tritonembed_tokens_total": "Tokens embedded",
    "tritonembed_batches_total": "Forward passes",
    "tritonembed_batch_capacity_tokens_total": "Token budget of the forward passes; tokens over this is the batch fill",
    "tritonembed_compute_seconds_total": "Seconds from the launch of a batch to its result, summed",
    "tritonembed_embedded_requests_total": "Requests embedded",
    "tritonembed_queue_seconds_total": "Seconds that embedded requests waited in the engine, summed",
    "tritonembed_request_compute_seconds_total": "Seconds from the end of that wait to the request's vectors, summed",
    "tritonembed_expired_requests_total": "Requests dropped because their deadline passed before their turn",
    "tritonembed_refused_requests_total": "Requests answered with an error of their own",
}
LOAD_GAUGES = {
    "tritonembed_load": "Seconds of work that waits or is computed, at the last measured speed; 0 before a measurement",
    "tritonembed_queued_requests": "Requests that wait in the engine",
    "tritonembed_running_requests": "Requests of which a part is computed now",
}
"""Their values are read when they are handed over."""
BUILD_INFO = {"tritonembed_build_info": "1; the version that runs"}
EXECUTOR_INFO = {"tritonembed_executor_info": "1; the executor that runs, and the embedding space of its vectors"}
CACHE_METRICS = {
    "tritonembed_cache_hits_total": "Sentences whose vectors were in the cache",
    "tritonembed_cache_shared_total": "Sentences that shared the computation of an equal one",
    "tritonembed_cache_misses_total": "Sentences that were looked up in the cache and computed",
    "tritonembed_cache_evictions_total": "Vectors that made room for others in the cache",
    "tritonembed_cache_bytes": "Memory of the cache",
}
"""Only if there is a cache."""
QUALITY_METRICS = {
    "tritonembed_quantization_quality": "The part of the ten nearest of calibration texts that int8 keeps",
}
"""Only in int8."""
TOKENIZER_COUNTERS = {
    "tritonembed_tokenized_sentences_total": "Sentences tokenized",
    "tritonembed_truncated_sentences_total": "Sentences cut to the model's maximum length",
}


class EngineMetrics:
    """Counters of one model instance, and gauges that are counted up and down; `_total` distinguishes them.

    `add` is cheap and may be called from any thread.
    """

    def __init__(
        self,
        pb_utils: Any,
        instance: str,
        counters: Mapping[str, str],
        read: Callable[[], Mapping[str, float]] | None = None,
        **executor: str,
    ) -> None:
        """read: returns the values of gauges that are set instead of counted, by short names; called on another thread.

        executor: labels that name the executor that runs, and its embedding space.
        """
        labels = {"instance": instance}
        self._read = read
        # A metric dies with its family, so the families are kept.
        self._families = [
            pb_utils.MetricFamily(name=name, description=description, kind=_kind(pb_utils, name))
            for name, description in counters.items()
        ]
        self._metrics = {
            _short(name): family.Metric(labels=labels) for name, family in zip(counters, self._families, strict=True)
        }
        self._infos: list[Any] = []
        if executor:
            self._inform(pb_utils, EXECUTOR_INFO, {**labels, **executor})
            self._inform(pb_utils, BUILD_INFO, {**labels, "version": version(_DISTRIBUTION)})
        self._pending: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._hand_over_regularly, name="metrics", daemon=True)
        self._thread.start()

    def add(self, **amounts: float) -> None:
        """Count; names without the prefix `tritonembed_` and the suffix `_total`."""
        with self._lock:
            for name, amount in amounts.items():
                self._pending[name] += amount  # type: ignore[assignment]

    def close(self) -> None:
        """Hand over what is left and stop."""
        self._stop.set()
        self._thread.join()
        # Triton takes their memory back before the interpreter ends; freeing them after that would crash the process.
        self._metrics.clear()
        self._infos.clear()
        self._families.clear()

    def _hand_over_regularly(self) -> None:
        while not self._stop.wait(PERIOD_SECONDS):
            self._hand_over()
        self._hand_over()

    def _hand_over(self) -> None:
        with self._lock:
            pending, self._pending = self._pending, Counter()
        for name, amount in pending.items():
            self._metrics[name].increment(amount)
        for name, value in (self._read() if self._read else {}).items():
            self._metrics[name].set(value)

    def _inform(self, pb_utils: Any, described: Mapping[str, str], labels: Mapping[str, str]) -> None:
        """Add a gauge of 1 whose labels are the information."""
        for name, description in described.items():
            family = pb_utils.MetricFamily(name=name, description=description, kind=pb_utils.MetricFamily.GAUGE)
            metric = family.Metric(labels=labels)
            metric.set(1)
            self._infos.append(metric)
            self._families.append(family)


def _short(name: str) -> str:
    return name.removeprefix("tritonembed_").removesuffix(_COUNTED)


def _kind(pb_utils: Any, name: str) -> Any:
    return pb_utils.MetricFamily.COUNTER if name.endswith(_COUNTED) else pb_utils.MetricFamily.GAUGE
