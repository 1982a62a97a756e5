"""The manager over several servers: its policies, and what happens when a server is killed.

    python -m tritonembed_perf.scripts.service policies [--servers 4] [--utilization 0.6] [--seconds 30] [--plot FILE]
    python -m tritonembed_perf.scripts.service failover MODEL [--kills 20] [--clients 32] [-- serve options]
    python -m tritonembed_perf.scripts.service tls [--turns 5] [--dimensions 768]

`policies`: latencies at the same rate with very mixed lengths. The servers are real tritonservers whose model takes as
long as the text is long, one request at a time, as one GPU does: so four of them need no GPUs, and no two of them share
a core. Requests arrive at random moments (Poisson), the same ones at the same moments for each policy; most are one
short sentence, some are many long ones.

`failover`: SIGKILL of one of two servers under load. About half of the requests that are in flight at that moment are
at the server that dies; the other one answers them. The figures are the time from SIGKILL to the last answer of all
that were in flight, which no failed-over request exceeds, and the time until both servers are ready. A request that
fails ends the run.

`tls`: the cost of TLS between clients and the manager. Two managers, one of them with TLS, stand before one
tritonserver whose model takes no time; the same load goes through them in turns. Needs `openssl`.
"""

import json
import os
import signal
import subprocess
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

from tritonembed_manager.server.client_tls import ClientTls
from tritonembed_manager.tune.loadgen.clients import TIMEOUT_S, Interrupt, run_clients
from tritonembed_manager.tune.loadgen.load import GrpcSender, Load, LoadResult, Samples, Work, encode_request
from tritonembed_perf.failures import BenchError
from tritonembed_perf.loadgen.target import encode_loads
from tritonembed_perf.options import Model, run_script
from tritonembed_perf.server import RunningServer, running_manager, running_server

POLICIES = ("round_robin", "random", "least_loaded")
BYTES_PER_SECOND = 200_000
"""The speed of one server: a sentence of 50 tokens (250 bytes) takes 1.25 ms."""

MEDIAN_BYTES, SPREAD, LONGEST_BYTES = 250, 1.0, 2500
"""Median, spread and maximum of a sentence's length, which is log-normal."""

SHARE_OF_BATCHES, SENTENCES_OF_BATCH = 0.05, 32
REQUESTS = 2000
"""The number of different requests."""

SERVERS = 2
"""Servers of `failover`, which kills one of them."""

SETTLED_S = 2.0
"""Seconds of load with both servers before each kill."""

PATIENCE_S = 180.0
DAY_S = 86_400.0


def policies(
    servers: Annotated[int, Option(min=1)] = 4,
    utilization: Annotated[float, Option(help="Share of time in which a server computes.")] = 0.6,
    seconds: Annotated[float, Option(min=0.1, help="Seconds for each policy.")] = 30,
    seed: Annotated[int, Option(help="Seed of requests and arrivals.")] = 1,
    plot: Annotated[Path | None, Option(help="Draw the chart, as PLOT.png and PLOT.svg.")] = None,
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
                part = run_clients(Work(GrpcSender(manager.target), requests), load, 1).samples
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
    from tritonembed_perf.reports import chart

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
    """How long a killed server's requests wait, and how long the server is away."""
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
        part = running.result().samples
    if part.errors:
        raise BenchError(f"requests failed: {part.errors}")
    answered = [seconds_to_last_answer(part, killed) for killed in moments]
    for name, seconds in (("all answered", answered), ("both servers back", back)):
        p50, p99, most = np.percentile(seconds, (50, 99, 100)) * 1e3
        print(f"{name:>18}: p50 {p50:,.0f} ms, p99 {p99:,.0f} ms, most {most:,.0f} ms")
    return {"kills": kills, "clients": clients, "answered_s": answered, "back_s": back}


def kill_often(manager: RunningServer, load: "Future[LoadResult]", kills: int) -> tuple[list[float], list[float]]:
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


def seconds_to_last_answer(part: Samples, killed: float) -> float:
    """Seconds from the kill to the last answer of all requests that were in flight."""
    held = (part.finished - part.latencies <= killed) & (part.finished > killed)
    return float(part.finished[held].max() - killed) if held.any() else 0.0


def tritonservers(pid: int) -> list[int]:
    """The tritonservers that the manager launched, in the order of their ports."""
    found = [child for child in psutil.Process(pid).children(recursive=True) if child.name() == "tritonserver"]
    ordered = sorted(found, key=lambda child: next(w for w in child.cmdline() if w.startswith("--grpc-port=")))
    return [child.pid for child in ordered]


def server_states(manager: RunningServer) -> tuple[int, bool]:
    """Restarts of all servers so far, and whether every server serves."""
    with urllib.request.urlopen(f"{manager.url}/status", timeout=10) as answer:
        servers: list[dict[str, Any]] = json.load(answer)["servers"]
    return sum(server["restarts"] for server in servers), all(server["state"] == "ready" for server in servers)


TLS_LOADS = {"50x1": (1, 32, 6000), "50x64": (64, 8, 800)}
"""Sentences of 50 tokens per request, requests at once, and requests in all."""


def tls(
    turns: Annotated[int, Option(min=1)] = 5,
    dimensions: Annotated[int, Option(min=1, help="Dimensions of the vectors.")] = 768,
) -> dict[str, Any]:
    """Sentences per second, and CPU of the manager per request, with TLS and without."""
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        copytree(Path(__file__).parent / "queue_model", folder / "repository" / "embedding")
        os.environ |= {"QUEUE_MODEL_BYTES_PER_SECOND": "1e15", "QUEUE_MODEL_DIMENSIONS": str(dimensions)}
        target = stack.enter_context(running_server(None, ["--model-repository", str(folder / "repository")])).target
        certificate, key = write_certificate(folder)
        trust = ClientTls(ca=certificate.read_text())
        options = {"plain": [], "TLS": ["--tls-cert", str(certificate), "--tls-key", str(key)]}
        managers = {
            way: stack.enter_context(running_manager("tls", ["--server", target, *given]))
            for way, given in options.items()
        }
        senders = {
            "plain": GrpcSender(managers["plain"].target),
            "TLS": GrpcSender(f"grpcs://{managers['TLS'].target}", tls=trust),
        }
        for name, (sentences, at_once, requests) in TLS_LOADS.items():
            payloads = [encode_request(["x" * MEDIAN_BYTES] * sentences)]
            load = Load(at_once, None, requests, None, 0.0, TIMEOUT_S, seed=0)
            found: dict[str, list[tuple[float, float]]] = {way: [] for way in managers}
            for _ in range(turns):
                for way, manager in managers.items():
                    found[way].append(rate_and_cpu(manager, Work(senders[way], payloads), load, sentences))
            row = {"load": name} | summary(found)
            rows.append(row)
            print(
                f"{name:>6}: {row['plain_rate']:,.0f} sentences/s in plain text, {row['tls_rate']:,.0f} with TLS"
                f" ({row['rate_ratio']:.2f} x); {row['plain_cpu_us']:,.0f} and {row['tls_cpu_us']:,.0f} µs of the"
                f" manager's CPU per request ({row['cpu_ratio']:.2f} x)",
                flush=True,
            )
    return {"dimensions": dimensions, "turns": turns, "rows": rows}


def rate_and_cpu(manager: RunningServer, work: Work, load: Load, sentences: int) -> tuple[float, float]:
    """Sentences per second, and microseconds of the manager's CPU per request."""
    before = cpu_seconds(manager.process.pid)
    outcome = run_clients(work, load, 1)
    if outcome.samples.errors:
        raise BenchError(f"requests failed: {outcome.samples.errors}")
    spent = cpu_seconds(manager.process.pid) - before
    requests = len(outcome.samples.latencies)
    return requests * sentences / outcome.seconds, spent / requests * 1e6


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its descendants."""
    root = psutil.Process(pid)
    times = [process.cpu_times() for process in (root, *root.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))


def summary(found: dict[str, list[tuple[float, float]]]) -> dict[str, float]:
    """Medians, and medians of the ratios within a turn."""
    plain, encrypted = (np.array(found[way]) for way in ("plain", "TLS"))
    ratios = np.median(encrypted / plain, axis=0)
    (plain_rate, plain_cpu), (tls_rate, tls_cpu) = np.median(plain, axis=0), np.median(encrypted, axis=0)
    return {
        "plain_rate": float(plain_rate),
        "tls_rate": float(tls_rate),
        "rate_ratio": float(ratios[0]),
        "plain_cpu_us": float(plain_cpu),
        "tls_cpu_us": float(tls_cpu),
        "cpu_ratio": float(ratios[1]),
    }


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    certificate, key = folder / "tls.crt", folder / "tls.key"
    of = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command = ["openssl", "req", "-x509", *kind, *of, "-keyout", str(key), "-out", str(certificate)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BenchError(f"openssl made no certificate ({type(error).__name__})") from None
    return certificate, key


if __name__ == "__main__":
    run_script("service", __doc__, policies, failover, tls)
