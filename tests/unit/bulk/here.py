"""Runs a job in this process, without Ray, and reads what it wrote."""

import pyarrow.dataset as ds

from tritonembed_bulk.job import Run


def run_here(job, resume=True):
    """The records of all parts that were missing."""
    with Run(job, resume=resume) as run:
        worker = job.compute.open(job.ledger, "cpu")
        parts = [work for span in run.missing for work in job.read(span)]
        found = [job.commit(worker.embed(job.compute.prepare(work))) for work in parts]
        run.finish()
    return found


def read_output(folder):
    """All rows of an output, by id."""
    return ds.dataset(folder).to_table().sort_by("id")
