"""`tritonembed-bench compare` from start to end."""

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tritonembed_perf.compare.settings import CPU_LOADS, GPU_LOADS, Settings
from tritonembed_perf.failures import INTERRUPTED, BenchError, UsageError, one_line_errors
from tritonembed_perf.reports import cache_folder, describe_environment, machine_line, make_folder, typed_command

if TYPE_CHECKING:
    from tritonembed_perf.compare.contest import Plan
    from tritonembed_perf.compare.peer import Bench
    from tritonembed_perf.compare.results import Result


def compare(settings: Settings) -> None:
    """Measure this project and its peers on this machine: same model, same loads, one after the other.

    Each peer is swept over its main settings first, and measured with its best. Exit code 1: one of them answered
    wrongly.
    """
    with one_line_errors():
        from tritonembed_perf.compare.peers import all_peers
        from tritonembed_perf.compare.reports import merge_reports, publish, read_report

        if settings.list_peers:
            for peer in all_peers().values():
                print(f"{peer.name}  {peer.note}".rstrip())
        elif settings.merge:
            publish(*merge_reports([read_report("--merge", path) for path in settings.merge]), settings.out)
        else:
            _compare_peers(settings)


def _compare_peers(settings: Settings) -> None:
    """Raises UsageError; BenchError if a peer answered wrongly; typer.Exit after Ctrl-C."""
    from tritonembed_manager.tune.loads import WordTexts
    from tritonembed_perf.compare.contest import Contest
    from tritonembed_perf.compare.peers import choose_peers
    from tritonembed_perf.compare.reports import make_report, publish
    from tritonembed_perf.compare.trials import Materials
    from tritonembed_perf.loadgen.target import check_shapes, read_tokenizer

    peers = choose_peers(settings.peers)
    environment = describe_environment(typed_command())
    bench = _make_bench(settings, environment["machine"]["gpus"])
    plan = _make_plan(settings, bench)
    files, tokenizer = read_tokenizer(str(bench.model))
    trials = [*plan.closed, *plan.offered]
    check_shapes([(trial.name, trial.tokens, trial.sentences) for trial in trials], files, WordTexts(tokenizer))
    make_folder("--out", settings.out)
    print(f"{machine_line(environment['machine'])}\n{bench.model.name}, {bench.dtype} on {bench.device}", flush=True)
    began = time.monotonic()

    def log(text: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {text}", file=sys.stderr, flush=True)

    contest = Contest(bench, peers, plan, Materials(files, tokenizer, bench.dtype), log)
    finished = False
    try:
        finished = contest.run()
    finally:
        # Also after an error that nobody thought of: hours of measuring are not to be lost.
        report = make_report(environment, bench.model.name, bench.dtype, bench.device, finished, trials)
        publish(report, contest.results, settings.out)
    if not finished:
        raise typer.Exit(INTERRUPTED)
    wrong = [result.system for result in contest.results if any(one.wrong for one in result.every_sample)]
    if wrong:
        raise BenchError(f"wrong vectors from {', '.join(wrong)}")


def _make_plan(settings: Settings, bench: "Bench") -> "Plan":
    """Raises UsageError."""
    from tritonembed_perf.compare.contest import Plan
    from tritonembed_perf.compare.trials import Trial
    from tritonembed_perf.loadgen.requests import parse_loads

    if not settings.rounds and not settings.sweep_seconds:
        raise UsageError("--rounds 0 and --sweep-seconds 0 together measure nothing")
    rates, replicas = _numbers("--rates", settings.rates), _numbers("--replicas", settings.replicas)
    if not settings.rounds and (rates or replicas or settings.settings_from):
        raise UsageError("--rates, --replicas and --settings-from want --rounds 1 or more")
    try:
        [shape] = parse_loads(f"{settings.rate_shape}@1")
    except (UsageError, ValueError):
        raise UsageError(f"--rate-shape: {settings.rate_shape!r} is not TOKENSxSENTENCES") from None
    return Plan(
        [Trial.of(load) for load in parse_loads(settings.loads or (GPU_LOADS if bench.on_gpu else CPU_LOADS))],
        [Trial(shape.tokens, shape.sentences, rate=rate) for rate in rates],
        replicas,
        settings.rounds,
        settings.seconds,
        settings.sweep_seconds,
        settings.warm_up,
        settings.processes,
        _earlier(settings.settings_from, bench),
    )


def _earlier(path: Path | None, bench: "Bench") -> "dict[str, Result]":
    """What --settings-from names, by system. Raises UsageError."""
    from tritonembed_perf.compare.reports import read_report

    if path is None:
        return {}
    report, results = read_report("--settings-from", path)
    for key, here in (("model", bench.model.name), ("dtype", bench.dtype), ("device", bench.device)):
        if report[key] != here:
            raise UsageError(f"--settings-from: its {key} is {report[key]}, not {here}")
    return {result.system: result for result in results}


def _make_bench(settings: Settings, gpus: list[str]) -> "Bench":
    """What the peers have in common; without --model a random model is written. Raises UsageError."""
    from tritonembed_perf.compare.environments import parse_pythons
    from tritonembed_perf.compare.peer import Bench
    from tritonembed_perf.compare.peers import ENVIRONMENTS
    from tritonembed_perf.models import cached_preset

    device = settings.device or ("cuda" if gpus else "cpu")
    dtype = settings.dtype or ("bfloat16" if device == "cuda" else "float32")
    pythons = parse_pythons(settings.python or (), ENVIRONMENTS)
    work = (settings.work_dir or cache_folder() / "peers").resolve()
    model = settings.model
    if model is None:
        model = cached_preset("bert-base" if device == "cuda" else "bert-6x384", work / "models")
    elif not (model / "config.json").exists():
        raise UsageError(f"--model: {model} is not the folder of a model")
    cores = len(os.sched_getaffinity(0))
    return Bench(model.resolve(), dtype, device, cores, len(gpus), work, pythons, settings.install)


def _numbers(option: str, text: str) -> list[int]:
    parts = text.split(",") if text else []
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"{option} is numbers from 1 on, with commas between them")
    return [int(part) for part in parts]
