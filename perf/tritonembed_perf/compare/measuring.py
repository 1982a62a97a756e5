"""One peer under one load: requests and their right vectors, made once for all peers, and a sample."""

import json
import random
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from tritonembed_engine.model.files import ModelFiles
from tritonembed_manager.tune.loadgen.clients import Interrupt, run_clients
from tritonembed_manager.tune.loadgen.load import Load
from tritonembed_manager.tune.loads import WordTexts
from tritonembed_perf.compare.environments import LINE_LENGTH, CannotRunError
from tritonembed_perf.compare.peer import Endpoint, InProcess
from tritonembed_perf.compare.results import Sample, Trial
from tritonembed_perf.loadgen.answers import (
    Answer,
    AnswerCheck,
    Reference,
    embed_with_transformers,
    make_references,
    min_cosine,
)
from tritonembed_perf.loadgen.protocol import figures, make_work
from tritonembed_perf.loadgen.requests import PooledRequest, make_requests, requests_to_prepare
from tritonembed_perf.settings import client_processes

TIMEOUT_S = 120.0
PROGRAM_LIMIT_S = 600.0
"""Beyond the measured time: loading the model, and the first call."""


@dataclass(frozen=True)
class Material:
    """Requests of one shape and the right vectors of some of their sentences."""

    requests: Sequence[PooledRequest]
    references: Mapping[int, Reference]


class Materials:
    """Of every shape; references are transformers' in float32, the same for all peers."""

    def __init__(self, files: ModelFiles, tokenizer: Tokenizer, dtype: str) -> None:
        self._files = files
        self._words = WordTexts(tokenizer)
        self._min_cosine = min_cosine(dtype)
        self._made: dict[tuple[int, int], Material] = {}

    def of(self, trial: Trial) -> Material:
        """Made at the first use."""
        shape = trial.tokens, trial.sentences
        if shape not in self._made:
            lengths = [trial.tokens] * requests_to_prepare(trial.sentences, trial.tokens, None) * trial.sentences
            texts = self._words.of_lengths(lengths, random.Random(trial.tokens))
            requests = make_requests(texts, lengths, trial.sentences)
            references = make_references(requests, lambda texts: embed_with_transformers(self._files, texts))
            self._made[shape] = Material(requests, references)
        return self._made[shape]

    def check(self, trial: Trial) -> AnswerCheck:
        """Of the answers to the trial's requests."""
        return AnswerCheck(self._files.dimensions, self._files.normalize, self._min_cosine, self.of(trial).references)


@dataclass(frozen=True)
class Window:
    """How a sample is taken. processes: of the client; None for what suits this machine."""

    seconds: float
    warm_up: float
    processes: int | None = None


def take_sample(
    endpoint: Endpoint, trial: Trial, materials: Materials, window: Window, interrupt: Interrupt
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


def _run_program(endpoint: InProcess, trial: Trial, materials: Materials, window: Window) -> Sample:
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
