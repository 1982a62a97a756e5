"""How much a flood of large requests slows another caller of the manager, and how much that caller slows the flood.

    python -m tritonembed_perf.scripts.fairness MODEL [--flood 50x1024@8] [--single 50x1] [-- serve options]
    python -m tritonembed_perf.scripts.fairness MODEL --rate 50 --seconds 6 --warm-up 2 -- --device cuda --replicas 1

One caller keeps large requests in flight. Another caller sends single sentences at random moments (Poisson), on
connections of its own. For each manager, the flood is measured alone first, before any single sentence. Then come
rounds: the single sentences alone, then both together. The figures are the single sentences' p99 and the flood's tokens
per second, each with and without the other caller. The manager counts tokens when a part is answered.
"""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import typer
from typer import Option

from tritonembed_manager.tune.loadgen.clients import TIMEOUT_S, Watcher, run_clients
from tritonembed_manager.tune.loadgen.load import GrpcSender, Load, LoadResult, Work
from tritonembed_manager.tune.loads import LoadShape
from tritonembed_perf.failures import BenchError
from tritonembed_perf.loadgen.target import encode_loads
from tritonembed_perf.options import Model, run_script
from tritonembed_perf.overhead import read_metrics
from tritonembed_perf.server import RunningServer, running_manager

LATENCY_AIM, THROUGHPUT_AIM = 3.0, 0.9
_ANSWERED = re.compile(r"^tritonembed_server_answered_tokens_total\S* (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Round:
    """Percentiles in milliseconds, and tokens per second: of each caller alone, and together."""

    p50_alone: float
    p50_together: float
    p99_alone: float
    p99_together: float
    flood_alone: float
    flood_together: float
    latencies: tuple[list[float], list[float]]
    """Latencies of the single sentences in seconds: alone, together."""


def fairness(
    model: Model,
    context: typer.Context,
    flood: Annotated[str, Option(help="The flood: tokens x sentences @ requests at once.")] = "50x1024@8",
    single: Annotated[str, Option(help="The other caller's requests: tokens x sentences.")] = "50x1",
    rate: Annotated[float, Option(help="Requests per second of the other caller.")] = 10,
    seconds: Annotated[float, Option(min=1, help="Seconds per measurement.")] = 10,
    managers: Annotated[
        int, Option(min=1, help="Managers, one after the other; each measures the flood alone once.")
    ] = 1,
    rounds: Annotated[int, Option(min=1, help="Rounds per manager.")] = 3,
    warm_up: Annotated[float, Option(min=0, help="Seconds before each measurement.")] = 4,
) -> dict[str, Any]:
    """Latency of single sentences with and without a flood, and the flood's throughput."""
    (large, floods), (small, singles) = encode_loads(model, f"{flood},{single}@1").items()
    closed = Load(large.at_once, None, None, seconds, warm_up, TIMEOUT_S, 0)
    seen: list[Round] = []
    for _ in range(managers):
        with running_manager(model, context.args) as manager:
            alone = _flood(manager, floods, closed)
            for _ in range(rounds):
                open_loop = Load(None, rate, None, seconds, warm_up, TIMEOUT_S, len(seen))
                seen.append(_round(manager, floods, closed, singles, open_loop, small, alone))
                print(f"round {len(seen)}: {_line(seen[-1:])}", flush=True)
    print(f"all: {_line(seen)} (aims: at most {LATENCY_AIM:g}, at least {THROUGHPUT_AIM:g})")
    rows = [{name: getattr(one, name) for name in Round.__slots__ if name != "latencies"} for one in seen]
    p99_alone, p99_together = (_percentile(seen, which, 99) for which in (0, 1))
    kept = float(np.median([one.flood_together / one.flood_alone for one in seen]))
    return {
        "flood": flood,
        "single": single,
        "rate": rate,
        "rows": rows,
        "p99_alone_ms": p99_alone,
        "p99_together_ms": p99_together,
        "flood_kept": kept,
    }


def _line(rounds: list[Round]) -> str:
    (p50, beside), (p99, p99_beside) = ([_percentile(rounds, which, of) for which in (0, 1)] for of in (50, 99))
    alone, together = (float(np.median([getattr(one, name) for one in rounds])) for name in Round.__slots__[4:6])
    kept = float(np.median([one.flood_together / one.flood_alone for one in rounds]))
    return (
        f"single p50 {p50:.1f} -> {beside:.1f} ms, p99 {p99:.1f} -> {p99_beside:.1f} ms ({p99_beside / p99:.2f} x); "
        f"flood {alone / 1e3:,.1f} -> {together / 1e3:,.1f} K tokens/s ({kept:.2f} x)"
    )


def _percentile(rounds: list[Round], which: int, percent: float) -> float:
    """A percentile in milliseconds, over all requests. which: 0 for alone, 1 for together."""
    return float(np.percentile(np.concatenate([one.latencies[which] for one in rounds]), percent)) * 1e3


def _round(
    manager: RunningServer,
    floods: list[bytes],
    closed: Load,
    singles: list[bytes],
    open_loop: Load,
    small: LoadShape,
    flood_alone: float,
) -> Round:
    def few() -> LoadResult:
        return _run(manager, singles, open_loop)

    few_alone = few()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(few)
        together = _flood(manager, floods, closed)
        few_beside = running.result()
    tokens = few_beside.requests_per_second * small.sentences * small.tokens
    latencies = [outcome.samples.latencies for outcome in (few_alone, few_beside)]
    p50, p50_beside, p99, p99_beside = (
        float(np.percentile(each, percent)) * 1e3 for percent in (50, 99) for each in latencies
    )
    kept = (latencies[0].tolist(), latencies[1].tolist())
    return Round(p50, p50_beside, p99, p99_beside, flood_alone, together - tokens, kept)


class _Tokens(Watcher):
    """The tokens that the servers answer in the measured time."""

    def __init__(self, read: Callable[[], float]) -> None:
        self._read = read
        self.count = 0.0

    def begin(self) -> None:
        self.count = -self._read()

    def end(self) -> None:
        self.count += self._read()


def _flood(manager: RunningServer, payloads: list[bytes], load: Load) -> float:
    """Tokens per second of all callers."""

    def read() -> float:
        return sum(map(float, _ANSWERED.findall(read_metrics(f"127.0.0.1:{manager.metrics_port}"))))

    tokens = _Tokens(read)
    outcome = _run(manager, payloads, load, tokens)
    return tokens.count / outcome.seconds


def _run(manager: RunningServer, payloads: list[bytes], load: Load, watcher: Watcher | None = None) -> LoadResult:
    outcome = run_clients(Work(GrpcSender(manager.target), payloads), load, 1, watcher)
    if outcome.samples.errors:
        raise BenchError(f"requests failed: {outcome.samples.errors}")
    return outcome


if __name__ == "__main__":
    run_script("fairness", __doc__, fairness)
