"""How long the slowest request of a burst takes: many requests at one moment, then nothing.

    python -m tritonembed_perf.scripts.bursts MODEL_FOLDER [--bursts 30] [--json FILE] [-- replica options]

Closed loops do not show what happens when no further request comes. Triton's batcher, if its queues have limits or
priorities, can miss that an instance became free and looks again after 500 ms: compare with `--queue-limits`.
"""

import asyncio
import shlex
import time
from typing import Any

import numpy as np

from tritonembed_manager.tune.loadgen.clients import TIMEOUT_S
from tritonembed_manager.tune.loadgen.kserve import GrpcSender
from tritonembed_manager.tune.loads import LoadShape
from tritonembed_perf.loadgen.target import encode_loads
from tritonembed_perf.options import loads_option, parse_with_rest, script, script_parser
from tritonembed_perf.reports import describe_script, write_report
from tritonembed_perf.server import running_server

LOADS = "50x1@8,50x1@32,50x64@8"
PAUSE_S = 0.02
CHANNELS = 4
STALL_S = 0.4


@script
def main() -> None:
    """Print a row per load, and write all of them as JSON if wanted."""
    parser = script_parser(__doc__)
    parser.add_argument(
        "--loads", type=loads_option, default=LOADS, help="TOKENSxSENTENCES@REQUESTS of a burst, with commas"
    )
    parser.add_argument("--bursts", type=int, default=30)
    options, replica = parse_with_rest(parser)
    requests = encode_loads(options.model, options.loads)
    report = describe_script("bursts")
    print(f"server: {shlex.join(replica)}", flush=True)
    with running_server(options.model, replica) as server:
        rows = [
            describe(load, asyncio.run(send_bursts(server.target, payloads, load.at_once, options.bursts)))
            for load, payloads in requests.items()
        ]
    write_report(options.json, {**report, "rows": rows})


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


def describe(load: LoadShape, slowest: list[float]) -> dict[str, Any]:
    """The row of a load, printed too."""
    stalled = sum(seconds > STALL_S for seconds in slowest)
    middle, worst = float(np.median(slowest)) * 1e3, max(slowest) * 1e3
    print(
        f"{load!s:>8}: the slowest of a burst takes {middle:,.0f} ms (median), {worst:,.0f} at most; "
        f"over {STALL_S * 1e3:.0f} ms in {stalled} of {len(slowest)} bursts",
        flush=True,
    )
    return {"load": str(load), "median_ms": middle, "worst_ms": worst, "stalled": stalled, "bursts": len(slowest)}


if __name__ == "__main__":
    main()
