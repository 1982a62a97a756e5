"""Where the time of a server's start goes: the seconds of each phase that its log names, medians of several starts.

    python -m tritonembed_perf.scripts.cold_start MODEL [--rounds 3] [--json REPORT] [-- replica options]

The model's files and compiled kernels are in the caches after the first start, which is left out.
"""

import re
import statistics
import time
from typing import Annotated, Any

import typer
from typer import Option

from tritonembed_engine.stub.process import STARTING
from tritonembed_perf.failures import BenchError
from tritonembed_perf.options import Model, run_script
from tritonembed_perf.server import READY, free_ports, manager_process

LOOK_EVERY_S = 0.02
_PHASE = re.compile(rf"(?<!still ){re.escape(STARTING)}(.*?)(?: \(\d+ of \d+\))?$", re.MULTILINE)
"""What a replica or a tokenizer logs when a step begins."""


def cold_start(
    model: Model,
    context: typer.Context,
    rounds: Annotated[int, Option(min=1, help="Starts that are measured.")] = 3,
    timeout: Annotated[float, Option(min=1, help="Seconds for one start.")] = 1800,
) -> dict[str, Any]:
    """The seconds of each phase of a start."""
    found = [_start(model, context.args, timeout) for _ in range(rounds + 1)][1:]
    names = list(dict.fromkeys(name for phases in found for name in phases))
    rows = []
    for name in names:
        seconds = [phases.get(name, 0.0) for phases in found]
        rows.append({"phase": name, "seconds": round(statistics.median(seconds), 2), "all": seconds})
        print(f"{rows[-1]['seconds']:>7.2f} s  {name}")
    whole = [round(sum(phases.values()), 2) for phases in found]
    print(f"{statistics.median(whole):>7.2f} s  from exec to READY")
    return {"model": model, "options": context.args, "rows": rows, "ready": whole}


def steps(log: str) -> list[str]:
    """What a server's log says about its start so far: each step that began, in order."""
    return _PHASE.findall(log)


def _start(model: str, arguments: list[str], timeout: float) -> dict[str, float]:
    """The seconds of each phase of one start, in their order."""
    ports = [
        f"--{name}={port}" for name, port in zip(("port", "http-port", "metrics-port"), free_ports(3), strict=True)
    ]
    began = time.monotonic()
    phases: dict[str, float] = {}
    current, since = "starting the manager, tritonserver and Python", began
    with manager_process(
        ["replica", "--model", model, "--host=127.0.0.1", "--log-verbose", *ports, *arguments]
    ) as running:
        while READY not in (log := running.read_log()):
            now = time.monotonic()
            if running.process.poll() is not None or now - began > timeout:
                raise BenchError("the server did not become ready")
            newest = steps(log)
            if newest and newest[-1] != current:
                phases[current] = round(phases.get(current, 0.0) + now - since, 3)
                current, since = newest[-1], now
            time.sleep(LOOK_EVERY_S)
        phases[current] = round(phases.get(current, 0.0) + time.monotonic() - since, 3)
    return phases


if __name__ == "__main__":
    run_script("cold_start", __doc__, cold_start)
