"""Speed through a real Triton server that is started for it: `full` is `make bench`, `quick` is `make bench-quick`.

    python -m tritonembed_perf.scripts.bench full [--rounds 5] [--json FILE]
    python -m tritonembed_perf.scripts.bench quick [--update] [--limit SECONDS]
    python -m tritonembed_perf.scripts.bench throughput MODEL [--loads 50x64@96,50x1@1024] [-- replica options]

`full` and `quick` compare with sentence-transformers in this process, on BERT of 6 layers x 384 with random weights.
`full` also measures the tokenizer stage against `tokenizers` called directly, and memory over 10,000 requests. `quick`
compares its ratios with those committed for this kind of machine: exit code 1 if one is more than 20 % lower.
`throughput` has no peer: tokens per second and latency of any model by load, in a closed loop from several processes.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from tritonembed_manager.tune.loadgen.clients import run_closed_loop
from tritonembed_manager.tune.loads import LoadShape
from tritonembed_perf.loadgen.target import encode_loads
from tritonembed_perf.models import cached_preset
from tritonembed_perf.options import loads_option, output_file, parse_with_rest, positive, positive_whole, script
from tritonembed_perf.reports import describe_script, write_report
from tritonembed_perf.scripts.baseline import BASELINES, conclude
from tritonembed_perf.scripts.peer_rounds import Peer, measure_both, rounds
from tritonembed_perf.scripts.tokenizer_and_memory import compare_memory, compare_tokenizer
from tritonembed_perf.server import RunningServer, running_server
from tritonembed_perf.server_use import GpuMeter

MODEL = "bert-6x384"
FULL_LOAD = LoadShape(50, 64, 4)
FULL_SECONDS, QUICK_SECONDS = 6.0, 2.0
QUICK_LOADS = (FULL_LOAD, LoadShape(50, 1, 16))
QUICK_LIMIT_S = 150.0
QUICK_SERVER = ("--device", "cpu", "--dtype", "float32", "--no-reference")
"""Its answers are compared with the peer's vectors."""

THROUGHPUT_LOADS = "50x64@96,50x16@256,50x1@1024,512x64@48,512x16@96,512x1@512,50x1@1"
MOST_PROCESSES, REQUESTS_PER_PROCESS = 6, 171
"""A client process keeps about so many requests in flight before its own CPU is the limit."""

WARM_UP_S = 1.5


@script
def main() -> None:
    """Run the preset that is named first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    presets = parser.add_subparsers(required=True, metavar="full|quick|throughput")

    def preset(run: Callable[[argparse.Namespace, list[str]], None], text: str) -> Callable[..., object]:
        added = presets.add_parser(run.__name__, help=text)
        added.set_defaults(run=run)
        return added.add_argument

    option = preset(full, "against sentence-transformers, and the tokenizer, and memory")
    option("--rounds", type=positive_whole, default=5, help="of server and peer in turn; medians count")
    option("--dtype", default="float32", help="precision of the server")
    option("--peer-dtype", default="float32", help="precision of sentence-transformers")
    option("--skip-memory", action="store_true", help="leave out the 10,000 requests")
    option("--json", type=output_file, help="write the results here")
    option = preset(quick, "against sentence-transformers; fails if the ratios have dropped")
    option("--update", action="store_true", help="write the ratios as this machine's baseline")
    option("--limit", type=float, default=QUICK_LIMIT_S, help="seconds; fewer rounds if they are short")
    option = preset(throughput, "tokens/s and latency of a model; replica options follow --")
    option("model", help="folder of the model")
    option("--loads", type=loads_option, default=THROUGHPUT_LOADS)
    option("--seconds", type=positive, default=5)
    option("--rounds", type=positive_whole, default=1)
    option("--json", type=output_file, help="write the results here")
    options, replica = parse_with_rest(parser)
    options.run(options, replica)


def full(options: argparse.Namespace, replica: list[str]) -> None:
    """Print each result as it comes, and write all of them as JSON if wanted."""
    report = describe_script("bench")
    folder = str(cached_preset(MODEL))
    report["tokenizer"] = compare_tokenizer(folder, Tokenizer.from_file(f"{folder}/tokenizer.json"))
    with running_server(folder, ["--dtype", options.dtype, *replica]) as server:
        peer = Peer.load(folder, options.peer_dtype)
        turns = range(options.rounds)
        report["throughput"] = measure_both(
            server.target, peer, FULL_LOAD, turns, np.median, FULL_SECONDS, options.dtype
        )
        if not options.skip_memory:
            report["memory"] = compare_memory(server, peer.tokenizer)
    write_report(options.json, report)


def quick(options: argparse.Namespace, replica: list[str]) -> None:
    """Measure, print, compare; exit code 1 for a drop, and for ratios of a busy machine that --update would write."""
    report = describe_script("bench")
    began = time.monotonic()
    folder = str(cached_preset(MODEL))
    rows = []
    with ThreadPoolExecutor(1) as pool:
        # The peer is loaded while the server starts.
        loading = pool.submit(Peer.load, folder, "float32")
        with running_server(folder, [*QUICK_SERVER, *replica]) as server:
            peer = loading.result()
            for number, load in enumerate(QUICK_LOADS):
                now = time.monotonic()
                until = now + (began + options.limit - now) / (len(QUICK_LOADS) - number)
                # Other work on the machine makes rounds slower, never faster: the best round was disturbed least.
                rows.append(measure_both(server.target, peer, load, rounds(until), max, QUICK_SECONDS, "float32"))
    print(f"{time.monotonic() - began:.0f} s")
    sys.exit(conclude(report, rows, options.update, BASELINES))


def throughput(options: argparse.Namespace, replica: list[str]) -> None:
    """Print a row per load, and write all of them as JSON if wanted."""
    requests = encode_loads(options.model, options.loads)
    report = describe_script("bench")
    print(f"server: {shlex.join(replica)}")
    with running_server(options.model, replica) as server:
        print(next(line for line in server.read_log().splitlines() if line.startswith("READY")), flush=True)
        rows = [measure(server, load, payloads, options.seconds, options.rounds) for load, payloads in requests.items()]
    write_report(options.json, {**report, "rows": rows})


def measure(
    server: RunningServer, load: LoadShape, payloads: list[bytes], seconds: float, repeat: int
) -> dict[str, Any]:
    """One load; its median round."""
    at_once = load.at_once
    processes = min(at_once, max(4, min(MOST_PROCESSES, -(-at_once // REQUESTS_PER_PROCESS))))
    meter = GpuMeter()
    meter.start()
    outcomes = [run_closed_loop(server.target, payloads, at_once, processes, seconds, WARM_UP_S) for _ in range(repeat)]
    gpus = meter.stop()
    rate = float(np.median([outcome.requests_per_second for outcome in outcomes]))
    typical = min(outcomes, key=lambda outcome: abs(outcome.requests_per_second - rate))
    row: dict[str, Any] = {
        "load": str(load),
        "requests_per_second": rate,
        "tokens_per_second": rate * load.sentences * load.tokens,
        "p50_ms": typical.latency_ms(50),
        "p99_ms": typical.latency_ms(99),
        "errors": typical.part.errors,
        "client_cores": typical.client_cpu_seconds / seconds,
        "gpu_busy_percent": round(gpus[0].busy_percent) if gpus else None,
    }
    print(
        f"{row['load']:>12}: {row['tokens_per_second'] / 1e3:8,.0f} K tokens/s {rate:8,.0f} requests/s  "
        f"p50 {row['p50_ms']:.2f} p99 {row['p99_ms']:.2f} ms  "
        f"client {row['client_cores']:.1f} cores, GPU {row['gpu_busy_percent']} %"
        + (f"  ERRORS {row['errors']}" if row["errors"] else ""),
        flush=True,
    )
    return row


if __name__ == "__main__":
    main()
