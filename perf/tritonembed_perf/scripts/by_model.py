"""Models through Triton, one after the other: tokens/s by load, latency of one query, memory, start-up, least cosine.

python -m tritonembed_perf.scripts.by_model MODEL_FOLDER ... [--loads 50x64@16,512x64@16,50x1@1024] [--json FILE] [-- …]

What follows `--` are options of `tritonembed-manager replica`. Start-up counts until the first answer, with vLLM's
files and the reference of the model in the caches of an earlier start if there was one.
"""

import json
import re
import subprocess
import tempfile
import time
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from tritonembed_engine.stub.child_python import module_command
from tritonembed_manager.tune.loads import LoadShape
from tritonembed_perf.failures import BenchError
from tritonembed_perf.loadgen.requests import parse_loads
from tritonembed_perf.options import Loads, run_script
from tritonembed_perf.reports import print_table
from tritonembed_perf.server import RunningServer, running_server
from tritonembed_perf.server_use import NO_ANSWER, query_gpus

LOG_LENGTH = 800
ONE_QUERY = LoadShape(50, 1, 1)
EXECUTOR = re.compile(r"(\w+) executor: lowest cosine ([\d.]+) to the reference")


def by_model(
    models: Annotated[list[str], Argument(help="Folders of models.")],
    loads: Loads = "50x64@16,512x64@16,50x1@1024",
    seconds: Annotated[float, Option(min=0.1, help="Seconds of each load.")] = 8.0,
) -> dict[str, Any]:
    """Print a table, a row per model."""
    shapes = parse_loads(loads)
    folders = list(takewhile(lambda word: not word.startswith("-"), models))
    more = models[len(folders) :]
    rows = []
    for folder in folders:
        rows.append(measure(folder, shapes, seconds, more))
        print(json.dumps(rows[-1]), flush=True)
    names = list(map(str, shapes))
    header = ["model", "executor", *(f"{name}, K tokens/s" for name in names), "one query, ms", "GPU, MiB", "start, s"]
    print_table([*header, "least cosine"], [cells(row, names) for row in rows], left=(0, 1))
    return {"rows": rows}


def measure(model: str, loads: list[LoadShape], seconds: float, more: list[str]) -> dict[str, Any]:
    """Measure one model. loads: measured after one query at a time. more: options of the server."""
    before, started = gpu_memory_mib(), time.monotonic()
    with running_server(model, more) as server:
        start = time.monotonic() - started
        found = EXECUTOR.findall(server.read_log())
        executor, cosine = found[-1] if found else (None, None)
        return {
            "model": Path(model).name,
            "executor": executor,
            "start_seconds": start,
            "least_cosine": float(cosine) if cosine else None,
            "loads": [run(server, model, load, seconds) for load in (ONE_QUERY, *loads)],
            "gpu_memory_mib": gpu_memory_mib() - before,
        }


def run(server: RunningServer, model: str, load: LoadShape, seconds: float) -> dict[str, Any]:
    """Measure one load with `tritonembed-bench run`. The script ends if an answer is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "run.json"
        arguments = ["--server", server.target, "--model", model, "--json", str(report), "--timeout", "120"]
        arguments += ["--batch-sizes", str(load.sentences), "--prompt-length", str(load.tokens)]
        arguments += ["--concurrency", str(load.at_once), "--duration", str(seconds)]
        command = module_command("tritonembed_perf", "run", *arguments)
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode:
            raise BenchError(f"{Path(model).name}, {load}: {done.stdout[-LOG_LENGTH:].strip()}")
        row: dict[str, Any] = json.loads(report.read_text())["rows"][0]
        return {"load": str(load), **row}


def gpu_memory_mib() -> int:
    """Memory in use on all GPUs; 0 without a GPU."""
    try:
        return sum(used for _, _, used in query_gpus())
    except NO_ANSWER:
        return 0


def cells(row: dict[str, Any], loads: list[str]) -> list[str]:
    """A row of the table."""
    by_load = {load["load"]: load for load in row["loads"]}
    rates = [f"{by_load[load]['tokens_per_second'] / 1e3:,.0f}" for load in loads]
    cosine = f"{row['least_cosine']:.6f}" if row["least_cosine"] else "not compared"
    latency, memory = f"{by_load[str(ONE_QUERY)]['p50_ms']:.2f}", f"{row['gpu_memory_mib']:,}"
    return [row["model"], row["executor"] or "", *rates, latency, memory, f"{row['start_seconds']:.0f}", cosine]


if __name__ == "__main__":
    run_script("by_model", __doc__, by_model)
