"""The order of a comparison, and one peer under one load.

In the first round each peer is measured with all of its settings, in the others with the best of them.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from tritonembed_engine.model.files import ModelFiles
from tritonembed_manager.tune.loadgen.clients import Interrupt, run_clients
from tritonembed_manager.tune.loadgen.load import Load, LoadError
from tritonembed_manager.tune.loads import WordTexts
from tritonembed_perf.compare.launching import LINE_LENGTH, CannotRunError
from tritonembed_perf.compare.peer import DEFAULTS, Bench, Endpoint, InProcess, Peer, parse_pythons
from tritonembed_perf.compare.peers import ENVIRONMENTS, all_peers, choose_peers, with_settings
from tritonembed_perf.compare.results import Result, Sample, Trial, merge_reports, publish, read_report
from tritonembed_perf.failures import BenchError, UsageError
from tritonembed_perf.loadgen.checks import (
    AnswerCheck,
    RightVectors,
    embed_with_transformers,
    figures,
    make_references,
    make_work,
    min_cosine,
)
from tritonembed_perf.loadgen.protocols import Answer
from tritonembed_perf.loadgen.requests import PooledRequest, make_requests, parse_loads, requests_to_prepare
from tritonembed_perf.loadgen.target import check_loads, read_tokenizer
from tritonembed_perf.models import cached_preset
from tritonembed_perf.reports import begin_report, cache_folder, machine_line, without_paths
from tritonembed_perf.settings import CompareSettings, client_processes, numbers

TIMEOUT_S = 120.0
PROGRAM_LIMIT_S = 600.0
"""Limit beyond the measured time: for loading the model, and for the first call."""


@dataclass(frozen=True)
class Material:
    """Requests of one shape and the right vectors of some of their sentences."""

    requests: Sequence[PooledRequest]
    references: Mapping[int, RightVectors]


class Materials:
    """Materials of every shape. References are transformers' in float32, the same for all peers."""

    def __init__(self, files: ModelFiles, tokenizer: Tokenizer, dtype: str) -> None:
        self._files = files
        self._words = WordTexts(tokenizer)
        self._min_cosine = min_cosine(dtype)
        self._made: dict[tuple[int, int], Material] = {}

    def of(self, trial: Trial) -> Material:
        """The materials of a shape, made at the first use."""
        shape = trial.tokens, trial.sentences
        if shape not in self._made:
            lengths = [trial.tokens] * requests_to_prepare(trial.sentences, trial.tokens, None) * trial.sentences
            texts = self._words.of_lengths(lengths, random.Random(trial.tokens))
            requests = make_requests(texts, lengths, trial.sentences)
            references = make_references(requests, lambda texts: embed_with_transformers(self._files, texts))
            self._made[shape] = Material(requests, references)
        return self._made[shape]

    def check(self, trial: Trial) -> AnswerCheck:
        """The check of the answers to the trial's requests."""
        return AnswerCheck(self._files.dimensions, self._files.normalize, self._min_cosine, self.of(trial).references)


@dataclass(frozen=True)
class SampleWindow:
    """How a sample is taken. processes: of the client; None for what suits this machine."""

    seconds: float
    warm_up: float
    processes: int | None = None


def take_sample(
    endpoint: Endpoint, trial: Trial, materials: Materials, window: SampleWindow, interrupt: Interrupt
) -> Sample | None:
    """None for a trial that this peer can't run: a program in process has no offered rate.

    Raises CannotRunError, LoadError if a client process dies, and KeyboardInterrupt: what was measured so far does
    not count.
    """
    if isinstance(endpoint, InProcess):
        return None if trial.rate is not None else _run_program(endpoint, trial, materials, window)
    work = make_work(endpoint, materials.of(trial).requests, materials.check(trial))
    load = Load(trial.concurrency, trial.rate, None, window.seconds, window.warm_up, TIMEOUT_S, seed=1)
    with interrupt.catching():
        outcome = run_clients(work, load, client_processes(window.processes, trial.concurrency), interrupt=interrupt)
    if interrupt.happened:
        raise KeyboardInterrupt
    return figures(outcome)


def _run_program(endpoint: InProcess, trial: Trial, materials: Materials, window: SampleWindow) -> Sample:
    requests = materials.of(trial).requests
    at_once = [requests[i % len(requests)] for i in range(trial.concurrency or 1)]
    texts = [text for request in at_once for text in request.texts]
    with tempfile.TemporaryDirectory() as folder:
        job, vectors = Path(folder) / "job.json", Path(folder) / "vectors.npy"
        times = {"seconds": window.seconds, "warm_up": window.warm_up}
        job.write_text(json.dumps({"texts": texts, "vectors": str(vectors), **times}))
        limit = PROGRAM_LIMIT_S + sum(times.values())
        try:
            done = subprocess.run([*endpoint.command, "--job", str(job)], capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            raise CannotRunError(f"it did not end within {limit:.0f} s") from None
        if done.returncode:
            raise CannotRunError((done.stderr.strip().splitlines() or ["it failed"])[-1][:LINE_LENGTH])
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        rows = np.split(np.load(vectors), len(at_once))
    check = materials.check(trial)
    faults = [check.find_fault(number % len(requests), Answer(answer)) for number, answer in enumerate(rows)]
    wrong = [fault for fault in faults if fault]
    calls = found["calls"] / found["seconds"]
    p50, p90, p99 = np.percentile(np.array(found["latencies"]) * 1e3, (50, 90, 99)).tolist()
    return {
        "tokens_per_second": calls * sum(request.tokens for request in at_once),
        "requests_per_second": calls * len(at_once),
        "p50_ms": p50,
        "p90_ms": p90,
        "p99_ms": p99,
        "errors": {},
        "wrong": len(wrong),
        "faults": list(dict.fromkeys(wrong)),
        "client_saturated": False,
    }


class Contest:
    """Measures the peers under the trials; `results` can be read at any time, also after an interruption."""

    def __init__(
        self,
        bench: Bench,
        peers: Sequence[Peer],
        trials: Sequence[Trial],
        window: SampleWindow,
        materials: Materials,
        log: Callable[[str], None],
    ) -> None:
        self.results = [Result(peer.name) for peer in peers]
        self._entries = list(zip(peers, self.results, strict=True))
        self._bench = bench
        self._trials = trials
        self._window = window
        self._materials = materials
        self._log = log
        self._interrupt = Interrupt()

    def run(self, rounds: int) -> bool:
        """Run everything. False if Ctrl-C ended it early."""
        try:
            for peer, result in self._entries:
                self._prepare(peer, result)
            for number in range(rounds):
                self._log(f"round {number + 1} of {rounds}")
                for peer, result in self._entries:
                    if not result.why_not:
                        self._measure(peer, result)
        except KeyboardInterrupt:
            return False
        return True

    def _prepare(self, peer: Peer, result: Result) -> None:
        self._log(f"{peer.name}: preparing")
        try:
            peer.prepare(self._bench)
        except CannotRunError as error:
            result.why_not = without_paths(str(error))
            self._log(f"{peer.name}: {error}")
        result.note = peer.note

    def _measure(self, peer: Peer, result: Result) -> None:
        """A round of one peer. A server is started once for all trials that want its settings."""
        wanted: dict[str, list[Trial]] = {}
        for trial in self._trials:
            best = result.best(trial)
            for config in [best[0]] if best else peer.configs(self._bench):
                wanted.setdefault(config, []).append(trial)
        for config, trials in wanted.items():
            self._run_trials(peer, result, config, trials)
        if not result.samples:
            result.why_not = result.troubles[0] if result.troubles else "nothing could be measured"

    def _run_trials(self, peer: Peer, result: Result, config: str, trials: Sequence[Trial]) -> None:
        """Start it once, put it under each load, stop it. What does not work is added to its troubles."""
        name = f"{peer.name} {config}"

        def trouble(text: str) -> None:
            self._log(f"{name}: {text}")
            line = without_paths(text) + ("" if config == DEFAULTS else f" ({config})")
            result.troubles = list(dict.fromkeys([*result.troubles, line]))

        try:
            with peer.running(self._bench, config) as endpoint:
                result.note = peer.note
                for trial in trials:
                    sample = take_sample(endpoint, trial, self._materials, self._window, self._interrupt)
                    if sample is None:
                        continue
                    if not sample["requests_per_second"] and not sample["faults"]:
                        trouble(f"{trial}: no answer within {self._window.seconds:g} s")
                    result.samples.setdefault(config, {}).setdefault(str(trial), []).append(sample)
                    speed = f"{sample['tokens_per_second']:,.0f} tokens/s, p99 {sample['p99_ms']:,.1f} ms"
                    self._log("  ".join([f"{name}: {trial} {speed}", *sample["faults"][:1]]))
        except (CannotRunError, LoadError) as error:
            trouble(str(error))


LOADS = {"cpu": "50x64@4,50x1@16", "cuda": "50x64@96,50x1@1024,512x64@48"}
PRESETS = {"cpu": "bert-6x384", "cuda": "bert-base"}
DTYPES = {"cpu": "float32", "cuda": "bfloat16"}
OFFERED = 50, 1
"""Tokens and sentences of a request of --rates."""


def compare_peers(settings: CompareSettings) -> None:
    """Measure, list the peers or merge reports, as the options ask.

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
    peers = with_settings(choose_peers(settings.peers), settings.settings or ())
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

    window = SampleWindow(settings.seconds, settings.warm_up, settings.processes)
    contest = Contest(bench, peers, trials, window, Materials(files, tokenizer, bench.dtype), log)
    finished = False
    try:
        finished = contest.run(settings.rounds)
    finally:
        # Also after an unexpected error: hours of measurements must not be lost.
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
    """The head of a report: all but the systems. environment: as `describe_environment` returns it."""
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
