"""A job that tests kill, on a Ray of its own. Arguments: source, output, log, workers."""

import sys

from tests.unit.bulk.conftest import make_job

from tritonembed_bulk.cluster import ray_running
from tritonembed_bulk.job import Run, Workers
from tritonembed_perf.sleeping import SleepingCompute

if __name__ == "__main__":
    source, output, log, workers = sys.argv[1:]
    job = make_job(source, output, SleepingCompute(log=log, seconds_per_token=0.0001), part_rows=10)
    with Run(job, resume=True) as run, ray_running(None, dashboard=False):
        for record in run.records(Workers(int(workers), 0.5)):
            print(record.part, flush=True)
