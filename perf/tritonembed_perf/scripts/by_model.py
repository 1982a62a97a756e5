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
from pathlib import Path
from typing import Any

from tritonembed_engine.stub.child_python import module_command
from tritonembed_manager.tune.loads import LoadShape
from tritonembed_perf.options import loads_option, parse_with_rest, positive, script_parser
from tritonembed_perf.reports import describe_script, print_table, write_report
from tritonembed_perf.server import RunningServer, running_server

LOADS = "50x64@16,512x64@16,50x1@1024"
ONE_QUERY = LoadShape(50, 1, 1)
EXECUTOR = re.compile(r"(\w+) executor: lowest cosine ([\d.]+) to the reference")
GPU_MEMORY = ("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits")


def main() -> None:
    """Print a table, a row per model."""
    parser = script_parser(__doc__, model=False)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="folder of a model")
    parser.add_argument("--loads", type=loads_option, default=LOADS, help="TOKENSxSENTENCES@CONCURRENCY, with commas")
    parser.add_argument("--seconds", type=positive, default=8.0, help="of each load")
    options, more = parse_with_rest(parser)
    environment = describe_script("by_model")
    rows = []
    for model in options.models:
        rows.append(measure(model, options.loads, options.seconds, more))
        print(json.dumps(rows[-1]), flush=True)
    write_report(options.json, {**environment, "rows": rows})
    loads = [str(load) for load in options.loads]
    header = ["model", "executor", *(f"{load}, K tokens/s" for load in loads), "one query, ms", "GPU, MiB", "start, s"]
    print_table([*header, "least cosine"], [cells(row, loads) for row in rows], left=(0, 1))


def measure(model: Path, loads: list[LoadShape], seconds: float, more: list[str]) -> dict[str, Any]:
    """One model. loads: beside them one query at a time is measured."""
    before, started = gpu_memory_mib(), time.monotonic()
    with running_server(str(model), more) as server:
        start = time.monotonic() - started
        found = EXECUTOR.findall(server.read_log())
        executor, cosine = found[-1] if found else (None, None)
        return {
            "model": model.name,
            "executor": executor,
            "start_seconds": start,
            "least_cosine": float(cosine) if cosine else None,
            "loads": [run(server, model, load, seconds) for load in (ONE_QUERY, *loads)],
            "gpu_memory_mib": gpu_memory_mib() - before,
        }


def run(server: RunningServer, model: Path, load: LoadShape, seconds: float) -> dict[str, Any]:
    """One load, by `tritonembed-bench run`; the script ends if an answer is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "run.json"
        arguments = ["--server", server.target, "--model", str(model), "--json", str(report), "--timeout", "120"]
        arguments += ["--batch-sizes", str(load.sentences), "--prompt-length", str(load.tokens)]
        arguments += ["--concurrency", str(load.at_once), "--duration", str(seconds)]
        subprocess.run(module_command("tritonembed_perf", "run", *arguments), check=True, stdout=subprocess.DEVNULL)
        [row] = json.loads(report.read_text())["rows"]
        kept = ("tokens_per_second", "requests_per_second", "latency_ms", "errors", "wrong_answers", "client_saturated")
        return {"load": str(load), **{key: row[key] for key in kept}}


def gpu_memory_mib() -> int:
    """In use on all GPUs; 0 without one."""
    try:
        answer = subprocess.run(GPU_MEMORY, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(map(int, answer.split()))


def cells(row: dict[str, Any], loads: list[str]) -> list[str]:
    """A row of the table."""
    by_load = {load["load"]: load for load in row["loads"]}
    one = by_load[str(ONE_QUERY)]["latency_ms"]["p50"]
    rates = [f"{by_load[load]['tokens_per_second'] / 1e3:,.0f}" for load in loads]
    cosine = f"{row['least_cosine']:.6f}" if row["least_cosine"] else "not compared"
    memory = f"{row['gpu_memory_mib']:,}"
    return [row["model"], row["executor"] or "", *rates, f"{one:.2f}", memory, f"{row['start_seconds']:.0f}", cosine]


if __name__ == "__main__":
    main()
