"""One peer under one load: a sample is taken."""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tritonembed_manager.tune.loadgen.clients import Interrupt, run_clients
from tritonembed_manager.tune.loadgen.load import Load
from tritonembed_perf.compare.peer import CannotRunError, Endpoint, InProcess
from tritonembed_perf.compare.results import Sample
from tritonembed_perf.compare.trials import Materials, Trial
from tritonembed_perf.loadgen.answers import Answer
from tritonembed_perf.loadgen.protocol import make_work
from tritonembed_perf.reports import without_paths

TIMEOUT_S = 120.0
PROGRAM_LIMIT_S = 600.0
"""Beyond the measured time: loading the model, and the first call."""
MAX_CLIENT_PROCESSES = 8
CORES_PER_CLIENT_PROCESS = 2.67
"""Six clients for sixteen cores: four would be saturated by 1024 single sentences at a time."""


class InterruptedMeasurement(Exception):
    """Ctrl-C: what was measured before counts, this does not."""


def take_sample(
    endpoint: Endpoint,
    trial: Trial,
    materials: Materials,
    seconds: float,
    warm_up: float,
    processes: int | None,
    interrupt: Interrupt,
) -> Sample | None:
    """None for a trial that this peer can't run: a program in process has no offered rate.

    processes: of the client; None for what suits this machine. Raises CannotRunError, InterruptedMeasurement, and
    BenchError when a client process dies.
    """
    if isinstance(endpoint, InProcess):
        return None if trial.rate is not None else _run_program(endpoint, trial, materials, seconds, warm_up)
    material = materials.of(trial)
    work = make_work(endpoint, material.requests, materials.check(trial))
    load = Load(trial.concurrency, trial.rate, None, seconds, warm_up, TIMEOUT_S, seed=1)
    with interrupt.catching():
        outcome = run_clients(work, load, client_processes(trial, processes), interrupt=interrupt)
    if interrupt.happened:
        raise InterruptedMeasurement
    part = outcome.part
    p50, p90, p99 = (outcome.latency_ms(percent) if outcome.requests else 0.0 for percent in (50, 90, 99))
    faults = dict.fromkeys([*part.faults, *(f"{kind}: {message}" for kind, message in part.messages.items())])
    return Sample(
        outcome.tokens_per_second,
        outcome.requests_per_second,
        p50,
        p90,
        p99,
        sum(part.errors.values()),
        part.wrong,
        tuple(without_paths(fault) for fault in faults),
        outcome.client_cpu_seconds / seconds,
        outcome.is_client_saturated,
    )


def client_processes(trial: Trial, wanted: int | None) -> int:
    """Few on few cores, because the server needs them; the same for every peer."""
    cores = len(os.sched_getaffinity(0))
    most = wanted or max(1, min(int(cores / CORES_PER_CLIENT_PROCESS), MAX_CLIENT_PROCESSES))
    return most if trial.concurrency is None else min(most, trial.concurrency)


def _run_program(endpoint: InProcess, trial: Trial, materials: Materials, seconds: float, warm_up: float) -> Sample:
    requests = materials.of(trial).requests
    at_once = [requests[i % len(requests)] for i in range(trial.concurrency or 1)]
    texts = [text for request in at_once for text in request.texts]
    with tempfile.TemporaryDirectory() as folder:
        job, vectors = Path(folder) / "job.json", Path(folder) / "vectors.npy"
        job.write_text(json.dumps({"texts": texts, "seconds": seconds, "warm_up": warm_up, "vectors": str(vectors)}))
        limit = PROGRAM_LIMIT_S + seconds + warm_up
        try:
            done = subprocess.run([*endpoint.command, str(job)], capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            raise CannotRunError(f"it did not end within {limit:.0f} s") from None
        if done.returncode:
            raise CannotRunError((done.stderr.strip().splitlines() or ["it failed"])[-1][:160])
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        vectors_found = np.load(vectors)
    check = materials.check(trial)
    rows = range(0, len(texts), trial.sentences)
    faults = [
        check.find_fault(number % len(requests), Answer(vectors_found[start : start + trial.sentences]))
        for number, start in enumerate(rows)
    ]
    wrong = tuple(fault for fault in faults if fault)
    calls = found["calls"] / found["seconds"]
    p50, p90, p99 = np.percentile(np.array(found["latencies"]) * 1e3, (50, 90, 99)).tolist()
    return Sample(
        calls * sum(request.tokens for request in at_once),
        calls * len(at_once),
        p50,
        p90,
        p99,
        0,
        len(wrong),
        tuple(dict.fromkeys(wrong)),
        0.0,
        False,
    )
