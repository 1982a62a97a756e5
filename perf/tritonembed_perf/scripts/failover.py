"""SIGKILL of one of two Triton servers under load: how long until what it held is answered, and until it is back.

    python -m tritonembed_perf.scripts.failover MODEL [--kills 20] [--clients 32] [--json FILE] [-- serve options]

`tritonembed-manager serve` launches both. About half of the requests that are in flight at the moment of the kill are
at the server that dies; the other one answers them. Measured is the time from SIGKILL to the last answer of all that
were in flight, which no failed-over request exceeds. A request that fails ends the run.
"""

import json
import os
import signal
import time
import urllib.request
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]

from tritonembed_manager.tune.loadgen.clients import TIMEOUT_S, Interrupt, run_clients
from tritonembed_manager.tune.loadgen.kserve import GrpcSender
from tritonembed_manager.tune.loadgen.load import Load, Outcome, Part, Work
from tritonembed_manager.tune.loads import LoadShape
from tritonembed_perf.failures import BenchError
from tritonembed_perf.loadgen.target import encode_loads
from tritonembed_perf.options import parse_with_rest, script, script_parser
from tritonembed_perf.reports import describe_script, write_report
from tritonembed_perf.server import RunningServer, running_manager

SERVERS = 2
TOKENS = 50
SETTLED_S = 2.0
"""Of load with both servers before each kill."""

PATIENCE_S = 180.0
DAY_S = 86_400.0


@script
def main() -> None:
    """Print the distribution of both times; write JSON if wanted."""
    parser = script_parser(__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--clients", type=int, default=32)
    options, serve = parse_with_rest(parser)
    [payloads] = encode_loads(options.model, [LoadShape(TOKENS, 1, options.clients)]).values()
    report = describe_script("failover")
    arguments = ["--servers", str(SERVERS), "--num-replicas", str(SERVERS), "--max-restarts", str(options.kills)]
    interrupt = Interrupt()
    with running_manager(options.model, [*arguments, *serve]) as manager, ThreadPoolExecutor(1) as pool:
        work = Work(GrpcSender(manager.target), payloads)
        load = Load(options.clients, None, None, DAY_S, 0, TIMEOUT_S, seed=0)
        running = pool.submit(run_clients, work, load, 1, None, interrupt)
        try:
            kills, back = kill_often(manager, running, options.kills)
        finally:
            interrupt.happened = True
        part = running.result().part
    if part.errors:
        raise BenchError(f"requests failed: {part.errors}")
    answered = [seconds_to_last_answer(part, killed) for killed in kills]
    for name, seconds in (("all answered", answered), ("both servers back", back)):
        p50, p99 = np.percentile(seconds, (50, 99))
        print(f"{name:>18}: p50 {p50 * 1e3:,.0f} ms, p99 {p99 * 1e3:,.0f} ms, most {max(seconds) * 1e3:,.0f} ms")
    figures = {"kills": options.kills, "clients": options.clients, "answered_s": answered, "back_s": back}
    write_report(options.json, {**report, **figures})


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
    main()
