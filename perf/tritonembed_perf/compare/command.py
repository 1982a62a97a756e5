"""`tritonembed-bench compare` from start to end."""

import os
import sys
import time
from typing import Any

from tritonembed_perf.compare.contest import Contest, Materials, Window
from tritonembed_perf.compare.peer import Bench, parse_pythons
from tritonembed_perf.compare.peers import ENVIRONMENTS, all_peers, choose_peers
from tritonembed_perf.compare.results import Trial, merge_reports, publish, read_report
from tritonembed_perf.failures import BenchError, UsageError
from tritonembed_perf.loadgen.requests import parse_loads
from tritonembed_perf.loadgen.target import check_loads, read_tokenizer
from tritonembed_perf.models import cached_preset
from tritonembed_perf.reports import begin_report, cache_folder, machine_line
from tritonembed_perf.settings import CompareSettings, numbers

LOADS = {"cpu": "50x64@4,50x1@16", "cuda": "50x64@96,50x1@1024,512x64@48"}
PRESETS = {"cpu": "bert-6x384", "cuda": "bert-base"}
DTYPES = {"cpu": "float32", "cuda": "bfloat16"}
OFFERED = 50, 1
"""Tokens and sentences of a request of --rates."""


def compare_peers(settings: CompareSettings) -> None:
    """Measure, or what else the options ask for.

    Raises UsageError, BenchError if a peer answered wrongly, KeyboardInterrupt after Ctrl-C.
    """
    if settings.list_peers:
        for peer in all_peers().values():
            print(f"{peer.name}  {peer.note}".rstrip())
    elif settings.merge:
        publish(merge_reports([read_report(path) for path in settings.merge]), settings.out)
    else:
        _compare(settings)


def _compare(settings: CompareSettings) -> None:
    peers = choose_peers(settings.peers)
    environment = begin_report()
    bench = _make_bench(settings, environment["machine"]["gpus"])
    loads = parse_loads(settings.loads or LOADS[bench.device])
    rates = numbers("--rates", settings.rates) if settings.rates else []
    trials = [Trial(load.tokens, load.sentences, load.at_once) for load in loads]
    trials += [Trial(*OFFERED, rate=rate) for rate in rates]
    files, tokenizer = read_tokenizer(str(bench.model))
    check_loads(trials, files, tokenizer)
    if settings.out is not None:
        try:
            settings.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--out: {settings.out} can't be made: {error.strerror}") from None
    print(f"{bench.model.name}, {bench.dtype} on {bench.device}", flush=True)
    began = time.monotonic()

    def log(text: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {text}", file=sys.stderr, flush=True)

    window = Window(settings.seconds, settings.warm_up, settings.processes)
    contest = Contest(bench, peers, trials, window, Materials(files, tokenizer, bench.dtype), log)
    finished = False
    try:
        finished = contest.run(settings.rounds)
    finally:
        # Also after an error that nobody thought of: hours of measuring are not to be lost.
        head = make_head(environment, bench.model.name, bench.dtype, bench.device, finished, trials)
        publish((head, contest.results), settings.out)
    if not finished:
        raise KeyboardInterrupt
    wrong = [result.system for result in contest.results if any(one["wrong"] for one in result.every_sample())]
    if wrong:
        raise BenchError(f"wrong vectors from {', '.join(wrong)}")


def make_head(
    environment: dict[str, Any], model: str, dtype: str, device: str, finished: bool, trials: list[Trial]
) -> dict[str, Any]:
    """Of a report: all but the systems. environment: as `describe_environment` returns it."""
    run = {**environment, "machine_line": machine_line(environment["machine"]), "interrupted": not finished}
    return {"model": model, "dtype": dtype, "device": device, "trials": [str(trial) for trial in trials], "runs": [run]}


def _make_bench(settings: CompareSettings, gpus: list[str]) -> Bench:
    """What the peers have in common; without --model a random model is written. Raises UsageError."""
    device = settings.device or ("cuda" if gpus else "cpu")
    pythons = parse_pythons(settings.python or (), ENVIRONMENTS)
    work = (settings.work_dir or cache_folder() / "peers").resolve()
    model = settings.model
    if model is None:
        model = cached_preset(PRESETS[device], work / "models")
    elif not (model / "config.json").exists():
        raise UsageError(f"--model: {model} is not the folder of a model")
    cores = len(os.sched_getaffinity(0))
    return Bench(model.resolve(), settings.dtype or DTYPES[device], device, cores, work, pythons)
