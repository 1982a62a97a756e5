"""How much a bulk job slows interactive requests: `tritonembed bulk --server` beside single sentences on one manager.

    python -m tritonembed_perf.scripts.bulk_beside MODEL [--rate 10] [--rounds 3] [-- serve options]

The other caller's requests come at random moments (Poisson) with priority `interactive`; the job is the real command,
in processes of its own. In each round the requests come alone, then beside the job, which has begun to get answers. The
job's processes have the lowest priority of the system: in a fleet they are on other machines.
"""

import asyncio
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from typer import Option

from tritonembed import AsyncEmbeddingClient
from tritonembed_perf.failures import BenchError
from tritonembed_perf.options import Model, run_script
from tritonembed_perf.overhead import read_metrics
from tritonembed_perf.scripts.bulk import generate
from tritonembed_perf.server import RunningServer, running_manager

AIM = 1.5
WORDS = 40
TIMEOUT = 60.0
_ANSWERED = re.compile(r"^tritonembed_server_answered_tokens_total\S* (\S+)$", re.MULTILINE)


def beside(
    model: Model,
    context: typer.Context,
    rate: Annotated[float, Option(help="Single sentences per second.")] = 10,
    seconds: Annotated[float, Option(min=1, help="Per measurement.")] = 20,
    rounds: Annotated[int, Option(min=1, help="Percentiles are over all of them.")] = 3,
    rows: Annotated[int, Option(help="Of the job, which is ended with the round.")] = 200_000,
    batch_size: Annotated[int, Option(help="As of bulk.")] = 64,
    max_in_flight: Annotated[int, Option(help="As of bulk.")] = 8,
) -> dict[str, Any]:
    """Latency of single sentences alone and beside a bulk job, and the job's tokens per second."""
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, running_manager(model, context.args) as manager:
        file = Path(folder) / "texts.parquet"
        generate(file, rows)
        for number in range(rounds):
            alone = asyncio.run(_latencies(manager.target, rate, seconds, number))
            options = ["--batch-size", batch_size, "--max-in-flight", max_in_flight, "--part-rows", 512]
            with _job(manager, file, Path(folder) / f"out{number}", options):
                before = _answered(manager)
                together = asyncio.run(_latencies(manager.target, rate, seconds, number))
                tokens = (_answered(manager) - before) / seconds
            found.append({"alone": alone, "together": together, "tokens_per_second": tokens})
            print(f"round {number + 1}: {_line(found[-1:])}", flush=True)
    print(f"all: {_line(found)} (aim: at most {AIM:g} x)", flush=True)
    kept = {f"p{percent}_{name}_ms": _percentile(found, name, percent) for percent in (50, 99) for name in _NAMES}
    return {"rate": rate, "seconds": seconds, "batch_size": batch_size, "max_in_flight": max_in_flight, **kept} | {
        "tokens_per_second": float(np.median([row["tokens_per_second"] for row in found])),
        "requests": len(_all(found, "together")),
    }


_NAMES = ("alone", "together")


def _all(found: list[dict[str, Any]], name: str) -> list[float]:
    return [latency for row in found for latency in row[name]]


def _percentile(found: list[dict[str, Any]], name: str, percent: float) -> float:
    return float(np.percentile(_all(found, name), percent)) * 1e3


def _line(found: list[dict[str, Any]]) -> str:
    (p50, p50_beside), (p99, p99_beside) = (
        [_percentile(found, name, percent) for name in _NAMES] for percent in (50, 99)
    )
    tokens = float(np.median([row["tokens_per_second"] for row in found]))
    ratio = p99_beside / p99
    return (
        f"single p50 {p50:.1f} -> {p50_beside:.1f} ms, p99 {p99:.1f} -> {p99_beside:.1f} ms ({ratio:.2f} x); "
        f"job {tokens:,.0f} tokens/s"
    )


async def _latencies(target: str, rate: float, seconds: float, seed: int) -> list[float]:
    """Latencies in seconds of requests at random moments, from the moment at which each was due."""
    rng = np.random.default_rng(seed)
    due = np.cumsum(rng.exponential(1 / rate, int(rate * seconds)))
    text = "a word " * (WORDS // 2)
    async with AsyncEmbeddingClient(target) as client:
        await client.embed([text], priority="interactive", timeout=TIMEOUT)
        start = time.perf_counter()

        async def one(at: float) -> float:
            await asyncio.sleep(start + at - time.perf_counter())
            await client.embed([text], priority="interactive", timeout=TIMEOUT)
            return time.perf_counter() - start - at

        return list(await asyncio.gather(*map(one, due.tolist())))


@contextmanager
def _job(manager: RunningServer, file: Path, output: Path, options: list[object]) -> Iterator[None]:
    """A bulk job that runs while entered; the block begins once the job has answers."""
    program = [sys.executable, "-c", "from tritonembed.cli import main; main()", "bulk", file, output, "--id-column"]
    command = ["nice", "-n", "19", *program, "id", "--server", manager.target, *options]
    before = _answered(manager)
    with subprocess.Popen([*map(str, command)], stderr=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + 120
            while _answered(manager) < before + 20_000:
                if process.poll() is not None or time.monotonic() > end:
                    raise BenchError("the job got no answers")
                time.sleep(0.1)
            yield
            if process.poll() is not None:
                raise BenchError("the job ended before the round: give it more --rows")
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def _answered(manager: RunningServer) -> float:
    return sum(map(float, _ANSWERED.findall(read_metrics(f"127.0.0.1:{manager.metrics_port}"))))


if __name__ == "__main__":
    run_script("bulk_beside", __doc__, beside)
