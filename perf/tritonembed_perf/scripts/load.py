"""Starts servers and loads them: throughput by shape of request, bursts, and the hop through the manager.

    python -m tritonembed_perf.scripts.load throughput MODEL [--loads 50x64@96,50x1@1024] [-- replica options]
    python -m tritonembed_perf.scripts.load bursts MODEL [--bursts 30] [-- replica options]
    python -m tritonembed_perf.scripts.load hop MODEL [--data-planes workers,envoy] [--workers 1,2] [--clients 1]
                                                      [-- replica options]

`throughput`: tokens per second and latency, in a closed loop from several processes.

`bursts`: the time of the slowest of many requests that come at one moment and are followed by none. If Triton's queues
have limits or priorities, its batcher can miss that an instance became free, and looks again after 500 ms: compare with
`--queue-limits`.

`hop`: the same requests straight to a Triton server and through the manager, in turn. Requests per CPU second of the
manager and its Envoy are what one core forwards, whatever the number of cores. On a GPU machine: `hop MODEL
--data-planes workers,envoy --workers 4 --envoy-threads 4 --clients 6 --loads 50x1@1024,50x1@1,50x64@96`.
"""

import asyncio
import time
from itertools import product
from typing import Annotated, Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import typer
from typer import Option

from tritonembed_manager.tune.loadgen.clients import TIMEOUT_S, run_closed_loop
from tritonembed_manager.tune.loadgen.load import GrpcSender, LoadResult
from tritonembed_manager.tune.loads import LoadShape
from tritonembed_perf.failures import BenchError
from tritonembed_perf.loadgen.checks import figures
from tritonembed_perf.loadgen.target import encode_loads
from tritonembed_perf.options import Loads, Model, run_script
from tritonembed_perf.server import RunningServer, running_manager, running_server
from tritonembed_perf.server_use import GpuMeter

MOST_PROCESSES, REQUESTS_PER_PROCESS = 6, 171
"""The most client processes, and about the requests in flight at which a process is limited by its own CPU."""

WARM_UP_S = 1.0
PAUSE_S, STALL_S = 0.02, 0.4
CHANNELS = 4

Seconds = Annotated[float, Option(min=0.01, help="Seconds of each round.")]
Rounds = Annotated[int, Option(min=1, help="Rounds of each load; medians count.")]


def throughput(
    model: Model,
    context: typer.Context,
    loads: Loads = "50x64@96,50x16@256,50x1@1024,512x64@48,512x16@96,512x1@512,50x1@1",
    seconds: Seconds = 5,
    rounds: Rounds = 1,
) -> dict[str, Any]:
    """Tokens per second and latency through Triton, by load."""
    requests = encode_loads(model, loads)
    rows = []
    with running_server(model, context.args) as server:
        print(next(line for line in server.read_log().splitlines() if line.startswith("READY")), flush=True)
        for load, payloads in requests.items():
            processes = min(load.at_once, max(4, min(MOST_PROCESSES, -(-load.at_once // REQUESTS_PER_PROCESS))))
            meter = GpuMeter()
            meter.start()
            outcomes = [_closed_loop(server, load, payloads, processes, seconds) for _ in range(rounds)]
            gpus = meter.stop()
            typical = sorted(outcomes, key=lambda outcome: outcome.requests_per_second)[(rounds - 1) // 2]
            busy = round(gpus[0].busy_percent) if gpus else None
            row = {"load": str(load), **figures(typical), "gpu_busy_percent": busy}
            row["tokens_per_second"] = typical.requests_per_second * load.sentences * load.tokens
            rows.append(row)
            print(
                f"{row['load']:>12}: {row['tokens_per_second'] / 1e3:8,.0f} K tokens/s "
                f"{row['requests_per_second']:8,.0f} requests/s  p50 {row['p50_ms']:.2f} p99 {row['p99_ms']:.2f} ms  "
                f"client {row['client_cpu_seconds'] / seconds:.1f} cores, GPU {busy} %"
                + (f"  ERRORS {row['errors']}" if row["errors"] else ""),
                flush=True,
            )
    return {"rows": rows}


def _closed_loop(
    server: RunningServer, load: LoadShape, payloads: list[bytes], processes: int, seconds: float
) -> LoadResult:
    return run_closed_loop(server.target, payloads, load.at_once, processes, seconds, WARM_UP_S)


def bursts(
    model: Model,
    context: typer.Context,
    loads: Loads = "50x1@8,50x1@32,50x64@8",
    bursts: Annotated[int, Option(min=1, help="Bursts of each load.")] = 30,
) -> dict[str, Any]:
    """How long the slowest request of a burst takes."""
    requests = encode_loads(model, loads)
    rows = []
    with running_server(model, context.args) as server:
        for load, payloads in requests.items():
            slowest = np.array(asyncio.run(send_bursts(server.target, payloads, load.at_once, bursts))) * 1e3
            row = {"load": str(load), "median_ms": float(np.median(slowest)), "worst_ms": float(slowest.max())}
            row |= {"stalled": int((slowest > STALL_S * 1e3).sum()), "bursts": bursts}
            rows.append(row)
            print(
                f"{load!s:>8}: the slowest of a burst takes {row['median_ms']:,.0f} ms (median), "
                f"{row['worst_ms']:,.0f} at most; over {STALL_S * 1e3:.0f} ms in {row['stalled']} of {bursts} bursts",
                flush=True,
            )
    return {"rows": rows}


async def send_bursts(target: str, payloads: list[bytes], at_once: int, bursts: int) -> list[float]:
    """Seconds that the slowest request of each burst took."""
    transport = GrpcSender(target).open(CHANNELS, TIMEOUT_S)

    async def one(number: int) -> float:
        started = time.perf_counter()
        await transport.send(payloads[number % len(payloads)], number)
        return time.perf_counter() - started

    await asyncio.gather(*(one(number) for number in range(CHANNELS)))
    slowest = []
    for _ in range(bursts):
        slowest.append(max(await asyncio.gather(*(one(number) for number in range(at_once)))))
        await asyncio.sleep(PAUSE_S)
    await transport.close()
    return slowest


def hop(
    model: Model,
    context: typer.Context,
    loads: Loads = "50x64@4,50x16@8,50x1@32,50x1@1",
    data_planes: Annotated[
        str, Option(help="What forwards requests, with commas between: workers, envoy.")
    ] = "workers",
    workers: Annotated[str, Option(help="Workers of the manager, with commas between the numbers.")] = "1,2",
    envoy_threads: Annotated[
        int | None, Option(min=1, help="Threads of Envoy; by default the manager's choice.")
    ] = None,
    clients: Annotated[int, Option(min=1, help="Client processes; one sends some 3,000 requests/s.")] = 1,
    seconds: Seconds = 3,
    rounds: Rounds = 5,
) -> dict[str, Any]:
    """The cost of the hop through the manager."""
    requests = encode_loads(model, loads)
    rows = []
    with running_server(model, context.args) as server:
        for count, plane in product(workers.split(","), data_planes.split(",")):
            attached = ["--server", server.target, "--workers", count, "--max-in-flight", "4096"]
            attached += ["--max-in-flight-per-server", "4096", "--data-plane", plane]
            if envoy_threads and plane == "envoy":
                attached += ["--envoy-threads", str(envoy_threads)]
            with running_manager("hop", attached) as manager:
                for load, payloads in requests.items():
                    processes = min(clients, load.at_once)
                    ways: dict[RunningServer, list[list[float]]] = {server: [], manager: []}
                    for number in range(rounds):
                        # In turn, so that a busy machine slows both.
                        for way in list(ways)[:: 1 if number % 2 == 0 else -1]:
                            before = manager_cpu_seconds(manager.process.pid)
                            outcome = _closed_loop(way, load, payloads, processes, seconds)
                            if outcome.samples.errors:
                                raise BenchError(f"requests failed: {outcome.samples.errors}")
                            # The warm-up's requests are in the CPU time, too.
                            spent = (manager_cpu_seconds(manager.process.pid) - before) / (seconds + WARM_UP_S)
                            speed = outcome.requests_per_second
                            ways[way].append([speed, outcome.latency_ms(50), spent / speed])
                    direct, through = np.array(ways[server]).T, np.array(ways[manager]).T
                    row = {"data_plane": plane, "workers": int(count), "load": str(load)}
                    rows.append({**row, **compare(direct, through)})
                    line = (
                        "{data_plane}, {workers} workers, {load:>8}: {through_requests_per_second:8,.0f} requests/s "
                        "through, {direct_requests_per_second:8,.0f} direct: {ratio:.3f}; p50 +{added_p50_ms:.2f} ms; "
                        "{requests_per_manager_core_second:,.0f} requests per CPU second of the manager"
                    )
                    print(line.format_map(rows[-1]), flush=True)
    return {"rows": rows}


def compare(direct: np.ndarray[Any, Any], through: np.ndarray[Any, Any]) -> dict[str, float]:
    """Medians over rounds. direct, through: [requests per second, p50, CPU seconds per request] by round."""
    return {
        "direct_requests_per_second": float(np.median(direct[0])),
        "through_requests_per_second": float(np.median(through[0])),
        "ratio": float(np.median(through[0] / direct[0])),
        "added_p50_ms": float(np.median(through[1] - direct[1])),
        "manager_cpu_us_per_request": float(np.median(through[2])) * 1e6,
        "requests_per_manager_core_second": 1 / float(np.median(through[2])),
    }


def manager_cpu_seconds(pid: int) -> float:
    """User and system time of the manager, its workers and its Envoy so far, without the servers that it launched."""
    total = 0.0
    for process in (root := psutil.Process(pid), *root.children(recursive=True)):
        try:
            if "python" in process.name() or process.name() == "envoy":
                times = process.cpu_times()
                total += times.user + times.system
        except psutil.NoSuchProcess:
            continue
    return total


if __name__ == "__main__":
    run_script("load", __doc__, throughput, bursts, hop)
