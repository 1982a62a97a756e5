"""How long the slowest request of a burst takes: so many requests at one moment, then nothing.

    python -m tritonembed_perf.bursts MODEL_FOLDER [--bursts 30] [--json FILE] [-- replica options]

Closed loops do not show what happens when no further request comes. Triton's batcher, where its queues have limits or
priorities, can miss that an instance became free and looks again after 500 ms: compare with `--queue-limits`.
"""

import argparse
import asyncio
import json
import shlex
import statistics
import sys
import time
from typing import Any

import grpc
from tokenizers import Tokenizer

from tritonembed_perf.encoded_requests import encoded_requests
from tritonembed_perf.load import CONNECTION_OPTIONS, METHOD
from tritonembed_perf.output import output_file
from tritonembed_perf.passed_on import parse_with_rest
from tritonembed_perf.run.environment import describe_environment, machine_line
from tritonembed_perf.server import running_server
from tritonembed_perf.shape_load import ShapeLoad, loads_option

LOADS = "50x1@8,50x1@32,50x64@8"
TEXTS = 512
PAUSE_S = 0.02
CHANNELS = 4
STALL_S = 0.4


def main() -> None:
    """Print a row for each load, and write all of them as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of the model")
    parser.add_argument(
        "--loads", type=loads_option, default=LOADS, help="TOKENSxSENTENCES@REQUESTS of a burst, with commas"
    )
    parser.add_argument("--bursts", type=int, default=30)
    parser.add_argument("--json", type=output_file)
    options, replica = parse_with_rest(parser)
    environment = describe_environment(["python", "-m", "tritonembed_perf.bursts", *sys.argv[1:]])
    print(f"{machine_line(environment['machine'])}\nserver: {shlex.join(replica)}", flush=True)
    tokenizer = Tokenizer.from_file(f"{options.model}/tokenizer.json")
    rows = []
    with running_server(options.model, replica) as server:
        for load in options.loads:
            slowest = asyncio.run(send_bursts(server.target, tokenizer, load, options.bursts))
            rows.append(describe(load, slowest))
    if options.json:
        options.json.write_text(json.dumps({**environment, "rows": rows}, indent=1) + "\n")


async def send_bursts(target: str, tokenizer: Tokenizer, load: ShapeLoad, bursts: int) -> list[float]:
    """Seconds that the slowest request of each burst took."""
    payloads = encoded_requests(tokenizer, load, TEXTS)
    channels = [grpc.aio.insecure_channel(target, options=CONNECTION_OPTIONS) for _ in range(CHANNELS)]
    await asyncio.gather(*(channel.channel_ready() for channel in channels))
    calls = [channel.unary_unary(METHOD, None, None) for channel in channels]

    async def one(number: int) -> float:
        started = time.perf_counter()
        await calls[number % CHANNELS](payloads[number % len(payloads)])
        return time.perf_counter() - started

    slowest = []
    for _ in range(bursts):
        slowest.append(max(await asyncio.gather(*(one(number) for number in range(load.concurrency)))))
        await asyncio.sleep(PAUSE_S)
    await asyncio.gather(*(channel.close(None) for channel in channels))
    return slowest


def describe(load: ShapeLoad, slowest: list[float]) -> dict[str, Any]:
    """The row of a load, printed too."""
    stalled = sum(seconds > STALL_S for seconds in slowest)
    middle, worst = statistics.median(slowest) * 1e3, max(slowest) * 1e3
    print(
        f"{load.name:>8}: the slowest of a burst takes {middle:,.0f} ms (median), {worst:,.0f} at most; "
        f"over {STALL_S * 1e3:.0f} ms in {stalled} of {len(slowest)} bursts",
        flush=True,
    )
    return {"load": load.name, "median_ms": middle, "worst_ms": worst, "stalled": stalled, "bursts": len(slowest)}


if __name__ == "__main__":
    main()
