"""What the hop through the manager costs: the same requests straight to a Triton server and through the manager.

    python -m tritonembed_perf.scripts.hop MODEL [--workers 1,2] [--clients 1] [--json FILE] [-- replica options]

Both ways take turns, so that a busy machine slows both; figures are medians over rounds. Requests per CPU second of the
manager is what one core of it forwards, however many cores the machine has for it.
"""

import argparse
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]

from tritonembed_manager.tune.loadgen.clients import run_closed_loop
from tritonembed_manager.tune.loads import LoadShape
from tritonembed_perf.failures import BenchError
from tritonembed_perf.loadgen.target import encode_loads
from tritonembed_perf.options import loads_option, parse_with_rest, script, script_parser
from tritonembed_perf.reports import describe_script, write_report
from tritonembed_perf.server import RunningServer, running_manager, running_server

LOADS = "50x64@4,50x16@8,50x1@32,50x1@1"
WARM_UP_S = 1.0


@script
def main() -> None:
    """Print a row for each load and number of workers, and write all of them as JSON if wanted."""
    parser = script_parser(__doc__)
    parser.add_argument("--loads", type=loads_option, default=LOADS, help="TOKENSxSENTENCES@CONCURRENCY, with commas")
    parser.add_argument("--workers", default="1,2", help="of the manager, with commas")
    parser.add_argument("--clients", type=int, default=1, help="client processes; one sends some 3,000 requests/s")
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    options, replica = parse_with_rest(parser)
    requests = encode_loads(options.model, options.loads)
    report = describe_script("hop")
    rows = []
    with running_server(options.model, replica) as server:
        for workers in options.workers.split(","):
            attached = ["--server", server.target, "--workers", workers, "--max-in-flight", "4096"]
            with running_manager("hop", attached) as manager:
                for load, payloads in requests.items():
                    row = measure(server, manager, load, payloads, options)
                    rows.append({"workers": int(workers), **row})
                    print(f"{workers} workers, {describe(row)}", flush=True)
    write_report(options.json, {**report, "rows": rows})


def measure(
    server: RunningServer,
    manager: RunningServer,
    load: LoadShape,
    payloads: list[bytes],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Both ways in turn, --rounds times."""
    clients = min(options.clients, load.at_once)

    def one_way(target: str) -> tuple[float, float, float]:
        """Requests per second, p50, CPU seconds of the manager per request."""
        before = manager_cpu_seconds(manager.process.pid)
        outcome = run_closed_loop(target, payloads, load.at_once, clients, options.seconds, WARM_UP_S)
        if outcome.part.errors:
            raise BenchError(f"requests failed: {outcome.part.errors}")
        # The warm-up's requests are in its CPU time, too.
        spent = (manager_cpu_seconds(manager.process.pid) - before) * options.seconds / (options.seconds + WARM_UP_S)
        return outcome.requests_per_second, outcome.latency_ms(50), spent / max(outcome.requests, 1)

    rounds: dict[str, list[tuple[float, float, float]]] = {server.target: [], manager.target: []}
    for number in range(options.rounds):
        for target in list(rounds) if number % 2 == 0 else reversed(list(rounds)):
            rounds[target].append(one_way(target))
    direct, through = (np.array(rounds[target]).T for target in (server.target, manager.target))
    cost = float(np.median(through[2]))
    return {
        "load": str(load),
        "direct_requests_per_second": float(np.median(direct[0])),
        "through_requests_per_second": float(np.median(through[0])),
        "ratio": float(np.median(through[0] / direct[0])),
        "added_p50_ms": float(np.median(through[1] - direct[1])),
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
