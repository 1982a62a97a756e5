"""The same through Ray: processes that are killed change nothing, and committed parts are not computed again."""

import os
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest
import ray
from tests.unit.bulk.here import read_output, run_here

from tritonembed_bulk import cluster
from tritonembed_bulk.job import Run, Workers
from tritonembed_bulk.parts import Refused
from tritonembed_perf.sleeping import SleepingCompute

WORKERS = Workers(1, 0.5)


@pytest.fixture
def log(tmp_path):
    folder = tmp_path / "log"
    folder.mkdir()
    return folder


def entries(log):
    """Part, process and time of each computation, in order."""
    found = [name.split() for name in os.listdir(log)]
    return sorted(((part, int(pid), int(at)) for part, pid, at in found), key=lambda entry: entry[2])


def test_a_killed_worker_changes_nothing_and_repeats_no_committed_part(ray_of_session, job_of, tmp_path, log):
    whole = run_here(job_of(output="undisturbed"))
    job = job_of(SleepingCompute(log=str(log), seconds_per_token=0.001))
    killed, found, again = [], [], set()
    with Run(job, resume=False) as run:
        for record in run.records(WORKERS):
            found.append(record.part)
            worker = entries(log)[-1][1]
            if not killed:
                os.kill(worker, signal.SIGKILL)
                killed.append(worker)
                again |= {part for part, pid, _ in entries(log) if pid == worker} - set(found)
    assert killed
    assert sorted(found) == sorted(record.part for record in whole)
    assert read_output(tmp_path / "out").equals(read_output(tmp_path / "undisturbed"))
    repeated = {part for part, count in Counter(part for part, _, _ in entries(log)).items() if count > 1}
    # What a worker held when it was killed.
    assert repeated <= again


def test_a_reason_to_stop_comes_through_ray_in_one_line(ray_of_session, job_of):
    run_here(job_of())
    job = job_of(SleepingCompute(space="111111111111-float32"))
    for record in job.ledger.records():
        job.ledger.forget(record)
    with Run(job, resume=True) as run, pytest.raises(Refused) as caught:
        list(run.records(WORKERS))
    expected = "the output has vectors of the space 000000000000-float32, and these are of 111111111111-float32"
    assert str(caught.value) == f"{expected}: choose another output"


def test_workers_fit_the_machine(ray_of_session, monkeypatch):
    monkeypatch.setattr(cluster, "cores", lambda: 8)
    assert cluster.cpu_workers(None, None, started_here=True) == Workers(1, 8)
    assert cluster.cpu_workers(4, None, started_here=True) == Workers(4, 2)
    assert cluster.cpu_workers(16, None, started_here=True) == Workers(16, 1)
    with pytest.raises(Refused, match="Ray has no GPU"):
        cluster.gpu_workers(None, None)


class WithProcesses(SleepingCompute):
    """The log gets a file per stage and process."""

    def prepare(self, work):
        (Path(self.log) / f"prepare {os.getpid()}").touch()
        return super().prepare(work)

    def open(self, ledger, device):
        (Path(self.log) / f"embed {os.getpid()}").touch()
        return super().open(ledger, device)


def test_no_part_is_tokenized_in_a_models_process(ray_of_session, job_of, log):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with Run(job_of(WithProcesses(log=str(log))), resume=False) as run:
        assert len(list(run.records(Workers(1, 1)))) == 10
    found = [name.split() for name in os.listdir(log) if name.startswith(("prepare", "embed"))]
    assert {stage for stage, _ in found} == {"prepare", "embed"}
    assert len({pid for _, pid in found}) == len(found)
