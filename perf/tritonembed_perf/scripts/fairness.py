"""What a flood of large requests costs another caller of the manager, and what it costs the flood.

    python -m tritonembed_perf.scripts.fairness MODEL [--flood 50x1024@8] [--single 50x1] [-- serve options]

One caller keeps large requests in flight. Another caller sends single sentences at random moments (Poisson), on a
connection of its own. In each round, over a new manager, the flood is measured alone, then the single sentences, then
both together. The figures are the single sentences' p99 and the flood's sentences per second, and how both change if
the other caller is there.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import typer
from typer import Option

from tritonembed_manager.tune.loadgen.clients import TIMEOUT_S, run_clients
from tritonembed_manager.tune.loadgen.load import GrpcSender, Load, Outcome, Work
from tritonembed_manager.tune.loads import LoadShape
from tritonembed_perf.failures import BenchError
from tritonembed_perf.loadgen.target import encode_loads
from tritonembed_perf.options import Model, run_script
from tritonembed_perf.server import RunningServer, running_manager

LATENCY_AIM, THROUGHPUT_AIM = 3.0, 0.9
SEED = 1


@dataclass(frozen=True, slots=True)
class Round:
    """p99 in milliseconds, sentences per second: of each caller alone, and together."""

    p99_alone: float
    p99_together: float
    flood_alone: float
    flood_together: float
    latencies: tuple[list[float], list[float]]
    """Of the single sentences, in seconds: alone, together."""


def fairness(
    model: Model,
    context: typer.Context,
    flood: Annotated[str, Option(help="Tokens x sentences @ requests at once.")] = "50x1024@8",
    single: Annotated[str, Option(help="Tokens x sentences.")] = "50x1",
    rate: Annotated[float, Option(help="Requests per second of the other caller.")] = 10,
    seconds: Annotated[float, Option(min=1, help="Per measurement.")] = 30,
    rounds: Annotated[int, Option(min=1)] = 3,
    warm_up: Annotated[float, Option(min=0, help="Seconds before each measurement.")] = 5,
) -> dict[str, Any]:
    """Latency of single sentences with and without a flood, and the flood's throughput."""
    (large, floods), (_, singles) = encode_loads(model, f"{flood},{single}@1").items()
    seen = []
    for number in range(rounds):
        # To a new manager, the flood is alone: nobody sent a single sentence before.
        with running_manager(model, context.args) as manager:
            one = _round(manager, large, floods, singles, Load(None, rate, None, seconds, warm_up, TIMEOUT_S, number))
        seen.append(one)
        print(
            f"round {number + 1}: single p99 {one.p99_alone:,.1f} ms alone, {one.p99_together:,.1f} ms with the "
            f"flood ({one.p99_together / one.p99_alone:.2f} x); flood {one.flood_alone:,.0f} sentences/s alone, "
            f"{one.flood_together:,.0f} with the other caller ({one.flood_together / one.flood_alone:.2f} x)",
            flush=True,
        )
    alone, together = (
        float(np.percentile(np.concatenate([one.latencies[which] for one in seen]), 99)) * 1e3 for which in (0, 1)
    )
    kept = float(np.median([one.flood_together / one.flood_alone for one in seen]))
    print(
        f"all rounds: single p99 {alone:,.1f} ms alone, {together:,.1f} ms with the flood: {together / alone:.2f} x "
        f"(aim: at most {LATENCY_AIM:g}); flood {kept:.2f} x (aim: at least {THROUGHPUT_AIM:g})"
    )
    rows = [{name: getattr(one, name) for name in Round.__slots__ if name != "latencies"} for one in seen]
    return {
        "flood": flood,
        "single": single,
        "rate": rate,
        "rows": rows,
        "p99_alone_ms": alone,
        "p99_together_ms": together,
        "flood_kept": kept,
    }


def _round(
    manager: RunningServer, large: LoadShape, floods: list[bytes], singles: list[bytes], open_loop: Load
) -> Round:
    closed_loop = Load(large.at_once, None, None, open_loop.duration, open_loop.warm_up, TIMEOUT_S, open_loop.seed)

    def few() -> Outcome:
        return _run(manager, singles, open_loop)

    def many() -> Outcome:
        return _run(manager, floods, closed_loop)

    with ThreadPoolExecutor(2) as pool:
        many_alone, few_alone = many(), few()
        few_beside, many_beside = (running.result() for running in [pool.submit(few), pool.submit(many)])
    return Round(
        few_alone.latency_ms(99),
        few_beside.latency_ms(99),
        many_alone.requests_per_second * large.sentences,
        many_beside.requests_per_second * large.sentences,
        (few_alone.part.latencies.tolist(), few_beside.part.latencies.tolist()),
    )


def _run(manager: RunningServer, payloads: list[bytes], load: Load) -> Outcome:
    outcome = run_clients(Work(GrpcSender(manager.target), payloads), load, 1)
    if outcome.part.errors:
        raise BenchError(f"requests failed: {outcome.part.errors}")
    return outcome


if __name__ == "__main__":
    run_script("fairness", __doc__, fairness)
