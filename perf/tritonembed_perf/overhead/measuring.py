"""The loads, sent one after the other to a server that runs, and what client, Triton and engine counted of each."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tritonembed_perf.overhead.client import send_timed
from tritonembed_perf.overhead.engine_tells import mean_times, read_counts, read_counts_after
from tritonembed_perf.overhead.stages import ClientTimes, EngineTimes, ModelTimes
from tritonembed_perf.overhead.triton_tells import growth, read_statistics
from tritonembed_perf.run.corpus import WordTexts
from tritonembed_perf.shape_load import ShapeLoad

WARM_UP_REQUESTS = 32
MOST_TEXTS = 64
"""Different requests of a load; then they come again."""
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Measured:
    """Of one load. client: by the request's id; models: by their names."""

    client: Mapping[str, ClientTimes]
    models: Mapping[str, ModelTimes]
    engine: EngineTimes


def send_all(
    server: str, metrics: str, loads: Sequence[ShapeLoad], words: WordTexts, requests: int
) -> tuple[list[Measured], bool]:
    """What was measured of each load, and whether Ctrl-C ended it; before there is anything to show it is raised.

    metrics: host:port of the server's metrics. Raises UsageError where it has none; BenchError when a request fails.
    """
    measured: list[Measured] = []
    try:
        for load in loads:
            measured.append(_send(server, metrics, load, words, requests))
    except KeyboardInterrupt:
        if not measured:
            raise
        return measured, True
    return measured, False


def _send(server: str, metrics: str, load: ShapeLoad, words: WordTexts, requests: int) -> Measured:
    count = min(requests, MOST_TEXTS)
    texts = words.of_lengths([load.tokens] * (load.sentences * count), random.Random(load.tokens))
    pool = [texts[start : start + load.sentences] for start in range(0, len(texts), load.sentences)]

    def some(number: int) -> list[list[str]]:
        return [pool[i % count] for i in range(number)]

    read_statistics(server)
    cold = read_counts(metrics)
    send_timed(server, some(WARM_UP_REQUESTS), load.concurrency, f"warm-{load.name}-", TIMEOUT_S)
    counts = read_counts_after(metrics, cold, WARM_UP_REQUESTS)
    statistics = read_statistics(server)
    client = send_timed(server, some(requests), load.concurrency, f"{load.name}-", TIMEOUT_S)
    models = growth(statistics, read_statistics(server))
    return Measured(client, models, mean_times(counts, read_counts_after(metrics, counts, requests)))
