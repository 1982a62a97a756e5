"""A text that ends its worker's process is found and left out, and no other part is blamed for it."""

import threading
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.unit.bulk.conftest import make_job

from tritonembed_bulk.attempts import ENDED, Attempts, forget_attempts
from tritonembed_bulk.job import Run
from tritonembed_bulk.parts import ATTEMPTS, Refused
from tritonembed_bulk.rows import Work
from tritonembed_perf.sleeping import digests


class Ended(BaseException):
    """A process ended."""


class Process:
    """A worker's process that ends at certain texts. It is the store, too: a process that ended deletes nothing."""

    def __init__(self, job, poison=()):
        self.job, self.poison = job, poison
        self.sizes, self.ended = [], False
        self.list, self.put = job.ledger.store.list, job.ledger.store.put

    def delete(self, name):
        if not self.ended:
            self.job.ledger.store.delete(name)

    def embed(self, work):
        self.sizes.append(len(work.rows))
        if {*work.texts} & {*self.poison}:
            self.ended = True
            raise Ended
        return self.job.compute.open(self.job.ledger, "cpu").embed(work)


def by_processes(job, read, poison):
    """The part, and the number of processes that ended before it was there."""
    for ends in range(100):
        process = Process(job, poison)
        try:
            return Attempts(process, process.embed).embed(read()), ends
        except Ended:
            continue
    raise AssertionError("for ever")


@pytest.fixture
def opened(tmp_path):
    """A job with one part of a hundred rows, and what reads the part."""
    pq.write_table(
        pa.table({"id": range(100), "text": [f"text {row}" for row in range(99)] + [None]}), tmp_path / "a.parquet"
    )
    job = make_job(tmp_path / "a.parquet", tmp_path / "out", part_rows=100)
    with Run(job, resume=False) as run:
        yield job, lambda: next(job.read(run.missing[0]))


@pytest.mark.parametrize(("poison", "expected"), [([41], 3 + 1 + 2), ([0, 98], 3 + 1 + 2 + 2), ([], 0)])
def test_texts_that_end_the_process_are_errors_and_the_others_have_vectors(opened, poison, expected):
    job, read = opened
    work, ends = by_processes(job, read, [b"text %d" % row for row in poison])
    # Three with the whole, one with a piece of seven texts, two with each of the texts alone; 98 is a piece itself.
    assert ends == expected
    assert work.errors == [(99, "no text"), *((row, ENDED) for row in poison)]
    rows = [row for row in range(99) if row not in poison]
    assert work.rows.tolist() == rows
    assert np.array_equal(work.vectors, digests([b"text %d" % row for row in rows], 16))
    assert job.commit(work).errors == 1 + len(poison)
    forget_attempts(job.ledger.store)
    assert job.ledger.store.list(ATTEMPTS) == []


def test_a_part_whose_processes_were_killed_is_computed_whole(opened):
    job, read = opened
    name = read().part.name
    for number in range(2):
        job.ledger.store.put(f"{ATTEMPTS}/{name}.0-99.{number}", b"")
    process = Process(job)
    Attempts(process, process.embed).embed(read())
    assert process.sizes == [99]


def test_an_error_is_no_end(opened):
    job, read = opened

    def refuse(work):
        raise Refused("no")

    for _ in range(5):
        with pytest.raises(Refused):
            Attempts(job.ledger.store, refuse).embed(read())
    assert job.ledger.store.list(ATTEMPTS) == []


def test_a_part_with_an_end_is_alone_in_its_process(opened):
    job, read = opened
    other = read()
    other.part = type(other.part)(other.part.input, 0, "other", 1)
    job.ledger.store.put(f"{ATTEMPTS}/{read().part.name}.0-99.0", b"")
    inside, most, entered, go = Counter(), Counter(), threading.Event(), threading.Event()

    def embed(work):
        inside.update([1])
        most[work.part.place] = max(most[work.part.place], inside[1])
        entered.set()
        go.wait(20)
        inside.subtract([1])
        return work

    attempts = Attempts(job.ledger.store, embed)
    threads = [threading.Thread(target=attempts.embed, args=[work]) for work in (other, read(), other)]
    threads[0].start()
    entered.wait(20)
    for thread in threads[1:]:
        thread.start()
    # Time for a part that does not wait to come in.
    threads[1].join(0.2)
    go.set()
    for thread in threads:
        thread.join(20)
    assert most[read().part.place] == 1


@pytest.mark.parametrize("chunked", [False, True])
def test_a_part_is_its_pieces(chunked):
    lengths = np.array([3, 1, 2, 4], np.int32)
    counts = np.array([1, 2, 1], np.int64) if chunked else None
    texts = 3 if chunked else 4
    rows = np.arange(texts, dtype=np.int64) * 2
    offsets = np.arange(8, dtype=np.int32).reshape(4, 2) if chunked else None
    ids = np.arange(10, dtype=np.int32)
    whole = Work(None, pa.table({"id": range(8)}), [], rows, [], ids, lengths, counts, offsets)
    pieces = [whole.piece(start, min(start + 2, texts)) for start in range(0, texts, 2)]
    assert [len(piece.ids) for piece in pieces] == ([6, 4] if chunked else [4, 6])
    for piece in pieces:
        piece.vectors = np.add.reduceat(piece.ids, np.cumsum(piece.lengths) - piece.lengths)[:, None]
        piece.busy = 1.0
    joined = whole.join(pieces)
    assert joined.vectors.tolist() == [[3], [3], [9], [30]]
    assert joined.busy == 2.0
    for name in ("rows", "lengths", "counts", "offsets"):
        assert np.array_equal(getattr(joined, name), getattr(whole, name))
