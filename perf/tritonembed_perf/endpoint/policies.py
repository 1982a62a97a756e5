"""least_loaded against round_robin where lengths are very mixed: latencies over several servers at the same rate.

    python -m tritonembed_perf.endpoint.policies [--servers 4] [--utilization 0.6] [--seconds 30] [--plot FILE]

The servers are real tritonservers whose model takes as long as the text is long, one request at a time, as one GPU
does: so four of them need no four GPUs, and no two of them share a core. Requests arrive at random moments (Poisson),
the same ones at the same moments for each policy; most are one short sentence, some are many long ones.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from shutil import copytree
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from tritonembed_perf.load import CONNECTION_OPTIONS, METHOD, encode_request
from tritonembed_perf.manager import running_manager
from tritonembed_perf.output import output_file
from tritonembed_perf.run.environment import describe_environment, machine_line
from tritonembed_perf.server import running_server

POLICIES = ("round_robin", "random", "least_loaded")
BYTES_A_SECOND = 200_000
"""Of one server: a sentence of 50 tokens (250 bytes) takes 1.25 ms."""

MEDIAN_BYTES, SPREAD = 250, 1.0
"""Of a sentence's length, which is log-normal."""

SHARE_OF_BATCHES, SENTENCES_OF_BATCH = 0.05, 32
LONGEST_BYTES = 2500
CHANNELS = 8


def main() -> None:
    """Print p50 and p99 of each policy; write JSON and the plot if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--servers", type=int, default=4)
    parser.add_argument("--utilization", type=float, default=0.6, help="share of time in which a server computes")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=output_file)
    parser.add_argument("--plot", type=output_file, help="written with .png and .svg added")
    options = parser.parse_args()
    environment = describe_environment(["python", "-m", "tritonembed_perf.endpoint.policies", *sys.argv[1:]])
    print(machine_line(environment["machine"]), flush=True)
    rng = np.random.default_rng(options.seed)
    requests, sizes = mixed_requests(rng, 2000)
    rate = options.utilization * options.servers * BYTES_A_SECOND / float(np.mean(sizes))
    moments = np.cumsum(rng.exponential(1 / rate, int(rate * options.seconds)))
    print(
        f"{options.servers} servers, {rate:.0f} requests/s, busy for {options.utilization:.0%} of the time", flush=True
    )
    latencies: dict[str, npt.NDArray[np.float64]] = {}
    with ExitStack() as stack:
        targets = start_servers(stack, options.servers)
        attached = [word for target in targets for word in ("--server", target)]
        for policy in POLICIES:
            with running_manager("policies", [*attached, "--load-balancing", policy]) as manager:
                latencies[policy] = asyncio.run(send(manager.target, requests, moments))
            p50, p99 = np.percentile(latencies[policy], (50, 99)) * 1e3
            print(f"{policy:>12}: p50 {p50:7.1f} ms  p99 {p99:7.1f} ms", flush=True)
    gain = float(np.percentile(latencies["round_robin"], 99) / np.percentile(latencies["least_loaded"], 99))
    print(f"p99 of round_robin is {gain:.2f} x that of least_loaded")
    if options.json:
        rows = [
            {"policy": name, **{f"p{p}_ms": float(np.percentile(seen, p)) * 1e3 for p in (50, 90, 99)}}
            for name, seen in latencies.items()
        ]
        report = {"rate": rate, "utilization": options.utilization, "servers": options.servers, "rows": rows}
        options.json.write_text(json.dumps({**environment, **report, "p99_gain": gain}, indent=1) + "\n")
    if options.plot:
        plot(options.plot, latencies)


def mixed_requests(rng: np.random.Generator, count: int) -> tuple[list[bytes], list[int]]:
    """Encoded requests, and the bytes of text in each."""
    payloads, sizes = [], []
    for _ in range(count):
        sentences = SENTENCES_OF_BATCH if rng.random() < SHARE_OF_BATCHES else 1
        lengths = np.minimum(rng.lognormal(np.log(MEDIAN_BYTES), SPREAD, sentences).astype(int) + 1, LONGEST_BYTES)
        texts = ["x" * int(length) for length in lengths]
        payloads.append(encode_request(texts))
        sizes.append(int(lengths.sum()))
    return payloads, sizes


def start_servers(stack: ExitStack, count: int) -> list[str]:
    """So many tritonservers with the model that sleeps; where they listen."""
    repository = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    copytree(Path(__file__).parent / "queue_model", repository / "embedding")
    os.environ["QUEUE_MODEL_BYTES_A_SECOND"] = str(BYTES_A_SECOND)
    arguments = ["--model-repository", str(repository)]
    return [stack.enter_context(running_server(None, arguments)).target for _ in range(count)]


async def send(target: str, requests: Sequence[bytes], moments: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Each request at its moment, whatever came back before; latencies in seconds from then on. Errors end the run."""
    channels = [grpc.aio.insecure_channel(target, options=CONNECTION_OPTIONS) for _ in range(CHANNELS)]
    await asyncio.gather(*(channel.channel_ready() for channel in channels))
    calls = [channel.unary_unary(METHOD, None, None) for channel in channels]
    loop = asyncio.get_running_loop()
    begin = loop.time() + 0.5

    async def one(number: int) -> float:
        due = begin + float(moments[number])
        await calls[number % CHANNELS](requests[number % len(requests)], timeout=60)
        return loop.time() - due

    pending = []
    for number, moment in enumerate(moments):
        await asyncio.sleep(max(0.0, begin + float(moment) - loop.time()))
        pending.append(asyncio.create_task(one(number)))
    seen = await asyncio.gather(*pending)
    await asyncio.gather(*(channel.close(None) for channel in channels))
    return np.array(seen)


def plot(path: Path, latencies: dict[str, npt.NDArray[np.float64]]) -> None:
    """The share of requests that took longer than so many milliseconds."""
    from tritonembed_perf.plots import chart

    with chart(path, "Requests that took longer, by policy (very mixed lengths)") as axes:
        drawing: Any = axes
        for name, seen in latencies.items():
            ordered = np.sort(seen) * 1e3
            left = 100 * (1 - np.arange(len(ordered)) / len(ordered))
            drawing.plot(ordered, left, label=f"{name}: p99 {np.percentile(ordered, 99):,.0f} ms")
        drawing.set_xscale("log")
        drawing.set_yscale("log")
        drawing.set_ylim(0.1, 100)
        drawing.set_xlabel("milliseconds")
        drawing.set_ylabel("% of requests that took longer")
        drawing.grid(alpha=0.25)
        drawing.legend(frameon=False)


if __name__ == "__main__":
    main()
