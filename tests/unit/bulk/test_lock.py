"""Two jobs on one output refuse each other; a lock whose owner is gone does not count."""

import json
import os
import subprocess
import sys

import pytest

from tritonembed_bulk.lock import LOCKS, Lock, start_of
from tritonembed_bulk.parts import Refused
from tritonembed_bulk.store import Store


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path))


def locks(store):
    return store.list(LOCKS)


def test_a_second_job_is_refused_and_leaves_the_first_ones_lock(store):
    with Lock(store):
        with pytest.raises(Refused, match=f"another job writes this output: process {os.getpid()}"), Lock(store):
            pass
        assert len(locks(store)) == 1
    assert locks(store) == []
    with Lock(store):
        pass


def test_the_lock_of_a_killed_process_does_not_count(store):
    code = (
        "import os, signal, sys; from tritonembed_bulk.lock import Lock; from tritonembed_bulk.store import Store\n"
        "Lock(Store(sys.argv[1])).__enter__(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, store.root], env=environment, check=False)
    assert len(locks(store)) == 1
    with Lock(store):
        assert len(locks(store)) == 1


def other_machine(store, seconds_ago):
    store.put(f"{LOCKS}/other.json", json.dumps({"host": "elsewhere", "system": "x", "pid": 1, "start": "1"}).encode())
    path = store.path(f"{LOCKS}/other.json")
    changed = os.stat(path).st_mtime - seconds_ago
    os.utime(path, (changed, changed))


def test_the_lock_of_another_machine_counts_until_it_is_not_renewed(store):
    other_machine(store, 50)
    with pytest.raises(Refused, match="on elsewhere"), Lock(store):
        pass
    other_machine(store, 70)
    with Lock(store):
        assert [info.base_name for info in locks(store)] != ["other.json"]


def test_a_lock_that_was_taken_away_is_noticed(store):
    with Lock(store, renew_seconds=0.01) as lock:
        [file] = locks(store)
        os.unlink(file.path)
        lock._thread.join(10)
        assert lock.lost


def test_an_id_that_came_again_is_another_process():
    assert start_of(os.getpid()) == start_of(os.getpid())
    assert start_of(2**22 + 1) is None
