"""The manager over several servers: its policies, and what happens when a server is killed.

    python -m tritonembed_perf.scripts.service policies [--servers 4] [--utilization 0.6] [--seconds 30] [--plot FILE]
    python -m tritonembed_perf.scripts.service failover MODEL [--kills 20] [--clients 32] [-- serve options]

`policies`: latencies at the same rate with very mixed lengths. The servers are real tritonservers whose model takes as
long as the text is long, one request at a time, as one GPU does: so four of them need no four GPUs, and no two of them
share a core. Requests arrive at random moments (Poisson), the same ones at the same moments for each policy; most are
one short sentence, some are many long ones.

`failover`: SIGKILL of one of two servers under load. About half of the requests that are in flight at that moment are
at the server that dies; the other one answers them. Measured is the time from SIGKILL to the last answer of all that
were in flight, which no failed-over request exceeds, and the time until both servers are ready. A request that fails
ends the run.
"""

import json
import os
import signal
import tempfile
import time
import urllib.request
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from shutil import copytree
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import psutil  # type: ignore[import-untyped]
import typer
from typer import Option

from tritonembed_manager.tune.loadgen.clients import TIMEOUT_S, Interrupt, run_clients
from tritonembed_manager.tune.loadgen.kserve import GrpcSender, encode_request
from tritonembed_manager.tune.loadgen.load import Load, Outcome, Part, Work
from tritonembed_perf.failures import BenchError
from tritonembed_perf.loadgen.target import encode_loads
from tritonembed_perf.options import Model, run_script
from tritonembed_perf.server import RunningServer, running_manager, running_server

POLICIES = ("round_robin", "random", "least_loaded")
BYTES_PER_SECOND = 200_000
"""Of one server: a sentence of 50 tokens (250 bytes) takes 1.25 ms."""

MEDIAN_BYTES, SPREAD, LONGEST_BYTES = 250, 1.0, 2500
"""Of a sentence's length, which is log-normal."""

SHARE_OF_BATCHES, SENTENCES_OF_BATCH = 0.05, 32
REQUESTS = 2000
"""Different ones."""

SERVERS = 2
"""Of which `failover` kills one."""

SETTLED_S = 2.0
"""Of load with both servers before each kill."""

PATIENCE_S = 180.0
DAY_S = 86_400.0


def policies(
    servers: Annotated[int, Option(min=1)] = 4,
    utilization: Annotated[float, Option(help="Share of time in which a server computes.")] = 0.6,
    seconds: Annotated[float, Option(min=0.1, help="For each policy.")] = 30,
    seed: Annotated[int, Option(help="Of requests and arrivals.")] = 1,
    plot: Annotated[Path | None, Option(help="Written with .png and .svg added.")] = None,
) -> dict[str, Any]:
    """Latencies of each policy at the same rate."""
    requests, sizes = mixed_requests(np.random.default_rng(seed), REQUESTS)
    rate = utilization * servers * BYTES_PER_SECOND / float(np.mean(sizes))
    load = Load(None, rate, None, seconds, 0, TIMEOUT_S, seed)
    print(f"{servers} servers, {rate:.0f} requests/s, busy for {utilization:.0%} of the time", flush=True)
    latencies: dict[str, npt.NDArray[np.float64]] = {}
    rows = {}
    with ExitStack() as stack:
        repository = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        copytree(Path(__file__).parent / "queue_model", repository / "embedding")
        os.environ["QUEUE_MODEL_BYTES_PER_SECOND"] = str(BYTES_PER_SECOND)
        arguments = ["--model-repository", str(repository)]
        targets = [stack.enter_context(running_server(None, arguments)).target for _ in range(servers)]
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
    if plot:
        draw(plot, latencies)
    return {"rate": rate, "utilization": utilization, "servers": servers, "rows": list(rows.values()), "p99_gain": gain}


def mixed_requests(rng: np.random.Generator, count: int) -> tuple[list[bytes], list[int]]:
    """Encoded requests, and the bytes of text in each."""
    payloads, sizes = [], []
    for _ in range(count):
        sentences = SENTENCES_OF_BATCH if rng.random() < SHARE_OF_BATCHES else 1
        lengths = np.minimum(rng.lognormal(np.log(MEDIAN_BYTES), SPREAD, sentences).astype(int) + 1, LONGEST_BYTES)
        payloads.append(encode_request(["x" * int(length) for length in lengths]))
        sizes.append(int(lengths.sum()))
    return payloads, sizes


def draw(path: Path, latencies: dict[str, npt.NDArray[np.float64]]) -> None:
    """The share of requests that took longer, by milliseconds."""
    from tritonembed_perf.plots import chart

    with chart(path, "Requests that took longer, by policy (very mixed lengths)") as axes:
        for name, seen in latencies.items():
            left = 100 * (1 - np.arange(len(seen)) / len(seen))
            axes.plot(np.sort(seen), left, label=f"{name}: p99 {np.percentile(seen, 99):,.0f} ms")
        axes.set(xscale="log", yscale="log", ylim=(0.1, 100))
        axes.set(xlabel="milliseconds", ylabel="% of requests that took longer")
        axes.grid(alpha=0.25)


def failover(
    model: Model,
    context: typer.Context,
    kills: Annotated[int, Option(min=1)] = 20,
    clients: Annotated[int, Option(min=1, help="Requests in flight.")] = 32,
) -> dict[str, Any]:
    """How long a killed server's requests wait, and until it is back."""
    [payloads] = encode_loads(model, f"50x1@{clients}").values()
    arguments = ["--servers", str(SERVERS), "--num-replicas", str(SERVERS), "--max-restarts", str(kills)]
    interrupt = Interrupt()
    with running_manager(model, [*arguments, *context.args]) as manager, ThreadPoolExecutor(1) as pool:
        load = Load(clients, None, None, DAY_S, 0, TIMEOUT_S, seed=0)
        running = pool.submit(run_clients, Work(GrpcSender(manager.target), payloads), load, 1, None, interrupt)
        try:
            moments, back = kill_often(manager, running, kills)
        finally:
            interrupt.happened = True
        part = running.result().part
    if part.errors:
        raise BenchError(f"requests failed: {part.errors}")
    answered = [seconds_to_last_answer(part, killed) for killed in moments]
    for name, seconds in (("all answered", answered), ("both servers back", back)):
        p50, p99, most = np.percentile(seconds, (50, 99, 100)) * 1e3
        print(f"{name:>18}: p50 {p50:,.0f} ms, p99 {p99:,.0f} ms, most {most:,.0f} ms")
    return {"kills": kills, "clients": clients, "answered_s": answered, "back_s": back}


def kill_often(manager: RunningServer, load: "Future[Outcome]", kills: int) -> tuple[list[float], list[float]]:
    """The moment of each kill on the monotonic clock, and the seconds from it to full strength."""
    moments, back = [], []
    for number in range(kills):
        time.sleep(SETTLED_S)
        if load.done():
            load.result()
        victim = tritonservers(manager.process.pid)[number % SERVERS]
        before, _ = server_states(manager)
        killed = time.perf_counter()
        os.kill(victim, signal.SIGKILL)
        while not ((states := server_states(manager))[0] > before and states[1]):
            if time.perf_counter() - killed > PATIENCE_S:
                raise BenchError("the server that was killed did not come back")
            time.sleep(0.05)
        moments.append(killed)
        back.append(time.perf_counter() - killed)
        print(f"kill {number + 1}: back after {back[-1]:.1f} s", flush=True)
    return moments, back


def seconds_to_last_answer(part: Part, killed: float) -> float:
    """From the kill to the last answer of all requests that were in flight then."""
    held = (part.finished - part.latencies <= killed) & (part.finished > killed)
    return float(part.finished[held].max() - killed) if held.any() else 0.0


def tritonservers(pid: int) -> list[int]:
    """Those that the manager launched, in the order of their ports."""
    found = [child for child in psutil.Process(pid).children(recursive=True) if child.name() == "tritonserver"]
    ordered = sorted(found, key=lambda child: next(w for w in child.cmdline() if w.startswith("--grpc-port=")))
    return [child.pid for child in ordered]


def server_states(manager: RunningServer) -> tuple[int, bool]:
    """Restarts of all servers so far, and whether every server serves."""
    with urllib.request.urlopen(f"{manager.url}/status", timeout=10) as answer:
        servers: list[dict[str, Any]] = json.load(answer)["servers"]
    return sum(server["restarts"] for server in servers), all(server["state"] == "ready" for server in servers)


if __name__ == "__main__":
    run_script("service", __doc__, policies, failover)
