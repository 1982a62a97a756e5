"""Tokens a second through a real Triton server, for several shapes of request; the server is started for it.

    python -m tritonembed_perf.throughput MODEL_FOLDER [--loads 50x64@96,50x1@1024] [--json FILE] [-- replica options]

A load is TOKENSxSENTENCES@CONCURRENCY: requests of so many sentences of exactly so many tokens, so many at once, in a
closed loop from several client processes on this machine, encoded beforehand. Figures are medians over --rounds.
"""

import argparse
import contextlib
import json
import math
import shlex
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from tritonembed._batches import MAX_BATCH_SIZE
from tritonembed_perf.encoded_requests import encoded_requests
from tritonembed_perf.failures import UsageError
from tritonembed_perf.gpu_busy import GpuBusy
from tritonembed_perf.load import Load, Outcome, run_load
from tritonembed_perf.machine import describe_command, describe_machine
from tritonembed_perf.manager_process import ServerEndedError
from tritonembed_perf.output import output_file
from tritonembed_perf.passed_on import parse_with_rest
from tritonembed_perf.run.corpus import WordTexts, check_length
from tritonembed_perf.run.suitable import check_sentences
from tritonembed_perf.run.target import read_tokenizer
from tritonembed_perf.server import RunningServer, running_server
from tritonembed_perf.shape_load import ShapeLoad, loads_option

LOADS = "50x64@96,50x16@256,50x1@1024,512x64@48,512x16@96,512x1@512,50x1@1"
REQUESTS_PER_PROCESS = 171
"""A client process keeps about so many requests in flight before its own CPU is the limit."""


def main() -> None:
    """Print a row a load, and write all of them as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of the model")
    parser.add_argument("--loads", type=loads_option, default=LOADS)
    parser.add_argument("--seconds", type=_seconds, default=5)
    parser.add_argument("--rounds", type=_rounds, default=1)
    parser.add_argument("--json", type=output_file)
    options, replica = parse_with_rest(parser)
    try:
        requests = prepare(options.model, options.loads)
    except UsageError as error:
        sys.exit(f"error: {error}")
    machine = describe_machine()
    print(f"machine: {machine}\nserver: {shlex.join(replica)}")
    rows = []
    try:
        with running_server(options.model, replica) as server:
            print(next(line for line in server.read_log().splitlines() if line.startswith("READY")), flush=True)
            for load, payloads in zip(options.loads, requests, strict=True):
                rows.append(measure(server, load, payloads, options.seconds, options.rounds))
    except ServerEndedError as error:
        sys.exit(f"error: {error}")
    if options.json:
        report = {"machine": machine, "command": describe_command("throughput"), "rows": rows}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def prepare(model: str, loads: Sequence[ShapeLoad]) -> list[list[bytes]]:
    """The requests of each load. Raises UsageError for a model, or a load of it, that can't be served."""
    files, tokenizer = read_tokenizer(model)
    words = WordTexts(tokenizer)
    for load in loads:
        check_length(f"--loads {load.name}", load.tokens, words, files.max_length)
    check_sentences([(f"--loads {load.name}", load.tokens, load.sentences) for load in loads], MAX_BATCH_SIZE)
    return [encoded_requests(tokenizer, load) for load in loads]


def measure(
    server: RunningServer, shape: ShapeLoad, payloads: list[bytes], seconds: float, rounds: int
) -> dict[str, Any]:
    """One load; its median round."""
    at_once = shape.concurrency
    processes = max(1, min(6, -(-at_once // REQUESTS_PER_PROCESS), at_once))
    load = Load(server.target, payloads, at_once, max(processes, min(4, at_once)), seconds, 1.5)
    outcomes: list[Outcome] = []
    busy = GpuBusy()
    with busy:
        for _ in range(rounds):
            outcomes.append(run_load(load))
    rate = statistics.median(outcome.rate for outcome in outcomes)
    typical = min(outcomes, key=lambda outcome: abs(outcome.rate - rate))
    row: dict[str, Any] = {
        "load": shape.name,
        "requests_per_second": rate,
        "tokens_per_second": rate * shape.sentences * shape.tokens,
        "p50_ms": typical.percentile(50) * 1e3,
        "p99_ms": typical.percentile(99) * 1e3,
        "errors": typical.errors,
        "client_cores": typical.cpu_seconds / seconds,
        "gpu_busy_percent": busy.percent(),
    }
    latency = f"p50 {row['p50_ms']:.2f} p99 {row['p99_ms']:.2f} ms"
    cost = f"client {row['client_cores']:.1f} cores, GPU {row['gpu_busy_percent']} %"
    errors = f"  ERRORS {typical.errors}" if typical.errors else ""
    tokens_rate = row["tokens_per_second"] / 1e3
    print(
        f"{shape.name:>12}: {tokens_rate:8,.0f} K tokens/s {rate:8,.0f} requests/s  {latency}  {cost}{errors}",
        flush=True,
    )
    return row


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (seconds := float(text)) < math.inf:
            return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")


def _rounds(text: str) -> int:
    with contextlib.suppress(ValueError):
        if (rounds := int(text)) > 0:
            return rounds
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")


if __name__ == "__main__":
    main()
