"""least_loaded against round_robin with very mixed lengths: latencies over several servers at the same rate.

    python -m tritonembed_perf.scripts.policies [--servers 4] [--utilization 0.6] [--seconds 30] [--plot FILE]

The servers are real tritonservers whose model takes as long as the text is long, one request at a time, as one GPU
does: so four of them need no four GPUs, and no two of them share a core. Requests arrive at random moments (Poisson),
the same ones at the same moments for each policy; most are one short sentence, some are many long ones.
"""

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from shutil import copytree

import numpy as np
import numpy.typing as npt

from tritonembed_manager.tune.loadgen.clients import TIMEOUT_S, run_clients
from tritonembed_manager.tune.loadgen.kserve import GrpcSender, encode_request
from tritonembed_manager.tune.loadgen.load import Load, Work
from tritonembed_perf.failures import BenchError
from tritonembed_perf.options import output_file, script, script_parser
from tritonembed_perf.reports import describe_script, write_report
from tritonembed_perf.server import running_manager, running_server

POLICIES = ("round_robin", "random", "least_loaded")
BYTES_PER_SECOND = 200_000
"""Of one server: a sentence of 50 tokens (250 bytes) takes 1.25 ms."""

MEDIAN_BYTES, SPREAD = 250, 1.0
"""Of a sentence's length, which is log-normal."""

SHARE_OF_BATCHES, SENTENCES_OF_BATCH = 0.05, 32
LONGEST_BYTES = 2500


@script
def main() -> None:
    """Print p50 and p99 of each policy; write JSON and the plot if wanted."""
    parser = script_parser(__doc__, model=False)
    parser.add_argument("--servers", type=int, default=4)
    parser.add_argument("--utilization", type=float, default=0.6, help="share of time in which a server computes")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plot", type=output_file, help="written with .png and .svg added")
    options = parser.parse_args()
    report = describe_script("policies")
    requests, sizes = mixed_requests(np.random.default_rng(options.seed), 2000)
    rate = options.utilization * options.servers * BYTES_PER_SECOND / float(np.mean(sizes))
    load = Load(None, rate, None, options.seconds, 0, TIMEOUT_S, options.seed)
    busy = f"busy for {options.utilization:.0%} of the time"
    print(f"{options.servers} servers, {rate:.0f} requests/s, {busy}", flush=True)
    latencies: dict[str, npt.NDArray[np.float64]] = {}
    rows = {}
    with ExitStack() as stack:
        targets = start_servers(stack, options.servers)
        attached = [word for target in targets for word in ("--server", target)]
        for policy in POLICIES:
            with running_manager("policies", [*attached, "--load-balancing", policy]) as manager:
                part = run_clients(Work(GrpcSender(manager.target), requests), load, 1).part
            if part.errors:
                raise BenchError(f"requests failed: {part.errors}")
            latencies[policy] = part.latencies * 1e3
            p50, p90, p99 = np.percentile(latencies[policy], (50, 90, 99)).tolist()
            rows[policy] = {"policy": policy, "p50_ms": p50, "p90_ms": p90, "p99_ms": p99}
            print(f"{policy:>12}: p50 {p50:7.1f} ms  p99 {p99:7.1f} ms", flush=True)
    gain = rows["round_robin"]["p99_ms"] / rows["least_loaded"]["p99_ms"]
    print(f"p99 of round_robin is {gain:.2f} x that of least_loaded")
    report |= {"rate": rate, "utilization": options.utilization, "servers": options.servers}
    write_report(options.json, {**report, "rows": list(rows.values()), "p99_gain": gain})
    if options.plot:
        plot(options.plot, latencies)


def mixed_requests(rng: np.random.Generator, count: int) -> tuple[list[bytes], list[int]]:
    """Encoded requests, and the bytes of text in each."""
    payloads, sizes = [], []
    for _ in range(count):
        sentences = SENTENCES_OF_BATCH if rng.random() < SHARE_OF_BATCHES else 1
        lengths = np.minimum(rng.lognormal(np.log(MEDIAN_BYTES), SPREAD, sentences).astype(int) + 1, LONGEST_BYTES)
        payloads.append(encode_request(["x" * int(length) for length in lengths]))
        sizes.append(int(lengths.sum()))
    return payloads, sizes


def start_servers(stack: ExitStack, count: int) -> list[str]:
    """Start tritonservers with the model that sleeps; where they listen."""
    repository = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    copytree(Path(__file__).parent / "queue_model", repository / "embedding")
    os.environ["QUEUE_MODEL_BYTES_PER_SECOND"] = str(BYTES_PER_SECOND)
    arguments = ["--model-repository", str(repository)]
    return [stack.enter_context(running_server(None, arguments)).target for _ in range(count)]


def plot(path: Path, latencies: dict[str, npt.NDArray[np.float64]]) -> None:
    """The share of requests that took longer, by milliseconds."""
    from tritonembed_perf.plots import chart

    with chart(path, "Requests that took longer, by policy (very mixed lengths)") as axes:
        for name, seen in latencies.items():
            left = 100 * (1 - np.arange(len(seen)) / len(seen))
            axes.plot(np.sort(seen), left, label=f"{name}: p99 {np.percentile(seen, 99):,.0f} ms")
        axes.set(xscale="log", yscale="log", ylim=(0.1, 100))
        axes.set(xlabel="milliseconds", ylabel="% of requests that took longer")
        axes.grid(alpha=0.25)


if __name__ == "__main__":
    main()
