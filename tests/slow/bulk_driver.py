"""A job on a Ray cluster that runs, in a process that a test kills. Arguments: address, source, output, log."""

import sys

from tests.unit.bulk.conftest import make_job

from tritonembed_bulk.cluster import ray_running
from tritonembed_bulk.job import Run, Workers
from tritonembed_perf.sleeping import SleepingCompute

if __name__ == "__main__":
    address, source, output, log = sys.argv[1:]
    job = make_job(source, output, SleepingCompute(log=log, seconds_per_token=0.0002))
    with Run(job, resume=True) as run, ray_running(address, dashboard=False):
        for _ in run.records(Workers(2, 0.5)):
            print("committed", flush=True)
