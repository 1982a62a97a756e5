"""Tokens a second through a real Triton server, for several shapes of request; the server is started for it.

    python -m tritonembed_perf.throughput MODEL_FOLDER [--loads 50x64@96,50x1@1024] [--json FILE] [-- replica options]

A load is TOKENSxSENTENCES@CONCURRENCY: requests of so many sentences of exactly so many tokens, so many at once, in a
closed loop from several client processes on this machine, encoded beforehand. Figures are medians over --rounds.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import threading
from typing import Any

from tokenizers import Tokenizer

from tritonembed_perf.encoded_requests import encoded_requests
from tritonembed_perf.load import Load, Outcome, run_load
from tritonembed_perf.machine import describe_command, describe_machine
from tritonembed_perf.output import output_file
from tritonembed_perf.passed_on import parse_with_rest
from tritonembed_perf.server import RunningServer, running_server
from tritonembed_perf.shape_load import ShapeLoad, parse_loads

LOADS = "50x64@96,50x16@256,50x1@1024,512x64@48,512x16@96,512x1@512,50x1@1"
REQUESTS_PER_PROCESS = 171
"""A client process keeps about so many requests in flight before its own CPU is the limit."""


def main() -> None:
    """Print a row a load, and write all of them as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of the model")
    parser.add_argument("--loads", default=LOADS)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=output_file)
    options, replica = parse_with_rest(parser)
    loads = parse_loads(options.loads)
    machine = describe_machine()
    print(f"machine: {machine}\nserver: {shlex.join(replica)}")
    tokenizer = Tokenizer.from_file(f"{options.model}/tokenizer.json")
    rows = []
    with running_server(options.model, replica) as server:
        print(next(line for line in server.read_log().splitlines() if line.startswith("READY")), flush=True)
        for load in loads:
            rows.append(measure(server, tokenizer, load, options.seconds, options.rounds))
    if options.json:
        report = {"machine": machine, "command": describe_command("throughput"), "rows": rows}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def measure(
    server: RunningServer, tokenizer: Tokenizer, shape: ShapeLoad, seconds: float, rounds: int
) -> dict[str, Any]:
    """One load; its median round."""
    at_once = shape.concurrency
    processes = max(1, min(6, -(-at_once // REQUESTS_PER_PROCESS), at_once))
    payloads = encoded_requests(tokenizer, shape)
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


class GpuBusy:
    """The share of time in which a kernel ran (NVML's utilization), sampled while the context is open."""

    def __init__(self) -> None:
        self._samples: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "GpuBusy":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def percent(self) -> int | None:
        """The median sample; None without a GPU."""
        return round(statistics.median(self._samples)) if self._samples else None

    def _sample(self) -> None:
        command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while not self._stop.wait(0.5):
            try:
                said = subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.split()
            except (OSError, subprocess.TimeoutExpired):
                return
            self._samples += [int(said[0])] if said else []


if __name__ == "__main__":
    main()
