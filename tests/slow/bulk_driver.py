"""A job that tests kill, on a Ray of its own. Arguments: source, output, log, workers, and a text that ends them."""

import sys

from tests.unit.bulk.conftest import make_job

from tritonembed_bulk.cluster import ray_running
from tritonembed_bulk.job import Run, Workers
from tritonembed_perf.sleeping import SleepingCompute

if __name__ == "__main__":
    source, output, log, workers, *poison = sys.argv[1:]
    compute = SleepingCompute(log=log, seconds_per_token=0.0001, poison=poison[0] if poison else None)
    job = make_job(source, output, compute, part_rows=10)
    with Run(job, resume=True) as run, ray_running(None, dashboard=False):
        for record in run.records(Workers(int(workers), 0.5)):
            print(record.part, flush=True)
