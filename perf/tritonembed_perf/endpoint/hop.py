"""What the hop through the manager costs: the same requests straight to a Triton server and through the manager.

    python -m tritonembed_perf.endpoint.hop MODEL [--workers 1,2] [--clients 1] [--json FILE] [-- replica options]

Both ways take turns, so that a busy machine slows both; figures are medians over rounds. Requests a CPU second of the
manager is what one core of it forwards, however many cores the machine has for it.
"""

import argparse
import json
import statistics
import sys
from typing import Any

from tokenizers import Tokenizer

from tritonembed_perf.encoded_requests import encoded_requests
from tritonembed_perf.endpoint.processes import manager_cpu_seconds
from tritonembed_perf.load import Load, Outcome, run_load
from tritonembed_perf.manager import RunningManager, running_manager
from tritonembed_perf.output import output_file
from tritonembed_perf.passed_on import parse_with_rest
from tritonembed_perf.run.environment import describe_environment, machine_line
from tritonembed_perf.server import RunningServer, running_server
from tritonembed_perf.shape_load import ShapeLoad, loads_option

LOADS = "50x64@4,50x16@8,50x1@32,50x1@1"
WARM_UP_S = 1.0


def main() -> None:
    """Print a row for each load and number of workers, and write all of them as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of the model")
    parser.add_argument("--loads", type=loads_option, default=LOADS, help="TOKENSxSENTENCES@CONCURRENCY, with commas")
    parser.add_argument("--workers", default="1,2", help="of the manager, with commas")
    parser.add_argument("--clients", type=int, default=1, help="client processes; one sends some 3,000 requests/s")
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=output_file)
    options, replica = parse_with_rest(parser)
    environment = describe_environment(["python", "-m", "tritonembed_perf.endpoint.hop", *sys.argv[1:]])
    print(machine_line(environment["machine"]), flush=True)
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
    if options.json:
        options.json.write_text(json.dumps({**environment, "rows": rows}, indent=1) + "\n")


def measure(
    server: RunningServer, manager: RunningManager, tokenizer: Tokenizer, load: ShapeLoad, options: argparse.Namespace
) -> dict[str, Any]:
    """Both ways in turn, as often as the options say."""
    payloads = encoded_requests(tokenizer, load)
    seconds = options.seconds
    clients = min(options.clients, load.concurrency)

    def run(target: str) -> Outcome:
        outcome = run_load(Load(target, payloads, load.concurrency, clients, seconds, WARM_UP_S))
        if outcome.errors:
            raise SystemExit(f"requests failed: {outcome.errors}")
        return outcome

    pairs, costs = [], []
    for number in range(options.rounds):
        ways = [server.target, manager.target]
        outcomes = {}
        for target in ways if number % 2 == 0 else reversed(ways):
            before = manager_cpu_seconds(manager.pid)
            outcomes[target] = run(target)
            spent = manager_cpu_seconds(manager.pid) - before
            if target == manager.target:
                # The warm-up's requests are in its CPU time too.
                costs.append(spent / (outcomes[target].requests * (seconds + WARM_UP_S) / seconds))
        pairs.append((outcomes[server.target], outcomes[manager.target]))
    cost = statistics.median(costs)
    return {
        "load": load.name,
        "direct_requests_per_second": statistics.median(direct.rate for direct, _ in pairs),
        "through_requests_per_second": statistics.median(through.rate for _, through in pairs),
        "ratio": statistics.median(through.rate / direct.rate for direct, through in pairs),
        "added_p50_ms": statistics.median(
            (through.percentile(50) - direct.percentile(50)) * 1e3 for direct, through in pairs
        ),
        "manager_cpu_us_per_request": cost * 1e6,
        "requests_per_manager_core_second": 1 / cost,
    }


def describe(row: dict[str, Any]) -> str:
    """A row in one line."""
    return (
        f"{row['load']:>8}: {row['through_requests_per_second']:8,.0f} requests/s through, "
        f"{row['direct_requests_per_second']:8,.0f} direct: {row['ratio']:.3f} x; p50 +{row['added_p50_ms']:.2f} ms; "
        f"{row['requests_per_manager_core_second']:,.0f} requests a CPU second of the manager"
    )


if __name__ == "__main__":
    main()
