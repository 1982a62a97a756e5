"""One comparison from start to end: options are checked, peers measured, a report is published."""

import os
import sys
import time
from pathlib import Path
from typing import Any

import typer

from tritonembed._batches import MAX_BATCH_SIZE
from tritonembed_perf.compare.contest import Contest, Plan
from tritonembed_perf.compare.environments import parse_pythons
from tritonembed_perf.compare.peer import Bench
from tritonembed_perf.compare.peers import ENVIRONMENTS, choose_peers
from tritonembed_perf.compare.reports import make_report, publish, read_report
from tritonembed_perf.compare.results import Result
from tritonembed_perf.compare.trials import Materials, Trial
from tritonembed_perf.failures import BenchError, UsageError
from tritonembed_perf.models import write_preset
from tritonembed_perf.output import make_folder
from tritonembed_perf.perf_analyzer.binary import default_cache
from tritonembed_perf.run.corpus import WordTexts, check_length
from tritonembed_perf.run.environment import describe_environment, machine_line, typed_command
from tritonembed_perf.run.suitable import check_sentences
from tritonembed_perf.run.target import read_tokenizer
from tritonembed_perf.shape_load import parse_loads
from tritonembed_perf.without_paths import public_command

INTERRUPTED = 130
GPU_LOADS = "50x64@96,50x1@1024,512x64@48"
CPU_LOADS = "50x64@4,50x1@16"


def compare_peers(options: dict[str, Any]) -> None:
    """options: of the command. Raises UsageError; BenchError where a peer answered wrongly; typer.Exit after Ctrl-C."""
    peers = choose_peers(options["peers"])
    environment = describe_environment(public_command(typed_command()))
    bench = make_bench(options, environment["machine"]["gpus"])
    plan = make_plan(options, bench)
    files, tokenizer = read_tokenizer(str(bench.model))
    trials = [*plan.closed, *plan.offered]
    words = WordTexts(tokenizer)
    for trial in trials:
        check_length(trial.name, trial.tokens, words, files.max_length)
    check_sentences([(trial.name, trial.tokens, trial.sentences) for trial in trials], MAX_BATCH_SIZE)
    if options["out"] is not None:
        make_folder("--out", options["out"])
    print(f"{machine_line(environment['machine'])}\n{bench.model.name}, {bench.dtype} on {bench.device}", flush=True)
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {text}", file=sys.stderr, flush=True)

    contest = Contest(bench, peers, plan, Materials(files, tokenizer, bench.dtype), say)
    finished = False
    try:
        finished = contest.run()
    finally:
        # Also after an error that nobody thought of: hours of measuring are not to be lost.
        report = make_report(environment, bench.model.name, bench.dtype, bench.device, finished, trials)
        publish(report, contest.results, options["out"])
    if not finished:
        raise typer.Exit(INTERRUPTED)
    wrong = [result.system for result in contest.results if any(one.wrong for one in result.every_sample)]
    if wrong:
        raise BenchError(f"wrong vectors from {', '.join(wrong)}")


def make_plan(options: dict[str, Any], bench: Bench) -> Plan:
    """Raises UsageError."""
    if not options["rounds"] and not options["sweep_seconds"]:
        raise UsageError("--rounds 0 and --sweep-seconds 0 together measure nothing")
    rates, replicas = _numbers("--rates", options["rates"]), _numbers("--replicas", options["replicas"])
    if not options["rounds"] and (rates or replicas or options["settings_from"]):
        raise UsageError("--rates, --replicas and --settings-from want --rounds 1 or more")
    try:
        [shape] = parse_loads(f"{options['rate_shape']}@1")
    except (UsageError, ValueError):
        raise UsageError(f"--rate-shape: {options['rate_shape']!r} is not TOKENSxSENTENCES") from None
    return Plan(
        [Trial.of(load) for load in parse_loads(options["loads"] or (GPU_LOADS if bench.on_gpu else CPU_LOADS))],
        [Trial(shape.tokens, shape.sentences, rate=rate) for rate in rates],
        replicas,
        options["rounds"],
        options["seconds"],
        options["sweep_seconds"],
        options["warm_up"],
        options["processes"],
        _earlier(options["settings_from"], bench),
    )


def _earlier(path: Path | None, bench: Bench) -> dict[str, Result]:
    """What --settings-from names, by system. Raises UsageError."""
    if path is None:
        return {}
    report, results = read_report("--settings-from", path)
    for key, here in (("model", bench.model.name), ("dtype", bench.dtype), ("device", bench.device)):
        if report[key] != here:
            raise UsageError(f"--settings-from: its {key} is {report[key]}, not {here}")
    return {result.system: result for result in results}


def make_bench(options: dict[str, Any], gpus: list[str]) -> Bench:
    """What the peers have in common; the model is written where none was given. Raises UsageError."""
    device = options["device"] or ("cuda" if gpus else "cpu")
    if device not in ("cpu", "cuda"):
        raise UsageError("--device is cpu or cuda")
    dtype = options["dtype"] or ("bfloat16" if device == "cuda" else "float32")
    if dtype not in ("float32", "bfloat16", "float16"):
        raise UsageError("--dtype is float32, bfloat16 or float16")
    pythons = parse_pythons(options["python"] or (), ENVIRONMENTS)
    work = (options["work_dir"] or default_cache() / "peers").resolve()
    model = options["model"]
    if model is None:
        preset = "bert-base" if device == "cuda" else "bert-6x384"
        model = work / "models" / preset
        if not (model / "modules.json").exists():
            write_preset(preset, model)
    elif not (model / "config.json").exists():
        raise UsageError(f"--model: {model} is not the folder of a model")
    cores = len(os.sched_getaffinity(0))
    return Bench(model.resolve(), dtype, device, cores, len(gpus), work, pythons, options["install"])


def _numbers(option: str, text: str | None) -> list[int]:
    parts = text.split(",") if text else []
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"{option} is numbers from 1 on, with commas between them")
    return [int(part) for part in parts]
