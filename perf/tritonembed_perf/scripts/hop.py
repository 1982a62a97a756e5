"""What the hop through the manager costs: the same requests straight to a Triton server and through the manager.

    python -m tritonembed_perf.scripts.hop MODEL [--workers 1,2] [--clients 1] [--json FILE] [-- replica options]

Both ways take turns, so that a busy machine slows both; figures are medians over rounds. Requests per CPU second of the
manager is what one core of it forwards, however many cores the machine has for it.
"""

import argparse
import statistics
from typing import Any

import psutil  # type: ignore[import-untyped]
from tokenizers import Tokenizer

from tritonembed_manager.tune.loadgen.clients import run_closed_loop
from tritonembed_manager.tune.loadgen.load import Outcome
from tritonembed_manager.tune.loads import LoadShape
from tritonembed_perf.loadgen.requests import encoded_requests
from tritonembed_perf.options import loads_option, parse_with_rest, script_parser
from tritonembed_perf.reports import describe_script, write_report
from tritonembed_perf.server import RunningManager, RunningServer, running_manager, running_server

LOADS = "50x64@4,50x16@8,50x1@32,50x1@1"
WARM_UP_S = 1.0


def main() -> None:
    """Print a row for each load and number of workers, and write all of them as JSON if wanted."""
    parser = script_parser(__doc__)
    parser.add_argument("--loads", type=loads_option, default=LOADS, help="TOKENSxSENTENCES@CONCURRENCY, with commas")
    parser.add_argument("--workers", default="1,2", help="of the manager, with commas")
    parser.add_argument("--clients", type=int, default=1, help="client processes; one sends some 3,000 requests/s")
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    options, replica = parse_with_rest(parser)
    environment = describe_script("hop")
    tokenizer = Tokenizer.from_file(f"{options.model}/tokenizer.json")
    rows = []
    with running_server(options.model, replica) as server:
        for workers in options.workers.split(","):
            attached = ["--server", server.target, "--workers", workers, "--max-in-flight", "4096"]
            with running_manager("hop", attached) as manager:
                for load in options.loads:
                    row = measure(server, manager, tokenizer, load, options)
                    rows.append({"workers": int(workers), **row})
                    print(f"{workers} workers, {describe(row)}", flush=True)
    write_report(options.json, {**environment, "rows": rows})


def measure(
    server: RunningServer, manager: RunningManager, tokenizer: Tokenizer, load: LoadShape, options: argparse.Namespace
) -> dict[str, Any]:
    """Both ways in turn, --rounds times."""
    payloads = encoded_requests(tokenizer, load)
    seconds = options.seconds
    clients = min(options.clients, load.at_once)
    pairs, costs = [], []
    for number in range(options.rounds):
        ways = [server.target, manager.target]
        outcomes: dict[str, Outcome] = {}
        for target in ways if number % 2 == 0 else reversed(ways):
            before = manager_cpu_seconds(manager.process.pid)
            outcomes[target] = outcome = run_closed_loop(target, payloads, load.at_once, clients, seconds, WARM_UP_S)
            spent = manager_cpu_seconds(manager.process.pid) - before
            if outcome.part.errors:
                raise SystemExit(f"requests failed: {outcome.part.errors}")
            if target == manager.target:
                # The warm-up's requests are in its CPU time too.
                costs.append(spent / (outcome.requests * (seconds + WARM_UP_S) / seconds))
        pairs.append((outcomes[server.target], outcomes[manager.target]))
    cost = statistics.median(costs)
    return {
        "load": str(load),
        "direct_requests_per_second": statistics.median(direct.requests_per_second for direct, _ in pairs),
        "through_requests_per_second": statistics.median(through.requests_per_second for _, through in pairs),
        "ratio": statistics.median(
            through.requests_per_second / direct.requests_per_second for direct, through in pairs
        ),
        "added_p50_ms": statistics.median(through.latency_ms(50) - direct.latency_ms(50) for direct, through in pairs),
        "manager_cpu_us_per_request": cost * 1e6,
        "requests_per_manager_core_second": 1 / cost,
    }


def manager_cpu_seconds(pid: int) -> float:
    """User and system time of the manager and its workers so far, without the Triton servers that it launched."""
    total = 0.0
    for process in (root := psutil.Process(pid), *root.children(recursive=True)):
        try:
            if "python" in process.name():
                times = process.cpu_times()
                total += times.user + times.system
        except psutil.NoSuchProcess:
            continue
    return total


def describe(row: dict[str, Any]) -> str:
    """A row in one line."""
    return (
        f"{row['load']:>8}: {row['through_requests_per_second']:8,.0f} requests/s through, "
        f"{row['direct_requests_per_second']:8,.0f} direct: {row['ratio']:.3f} x; p50 +{row['added_p50_ms']:.2f} ms; "
        f"{row['requests_per_manager_core_second']:,.0f} requests per CPU second of the manager"
    )


if __name__ == "__main__":
    main()
