"""The table of loads that workers share."""

import os
import subprocess
import sys

import pytest

from tritonembed_manager.router.data.load_table import LoadTable


@pytest.fixture
def table():
    made = LoadTable.create(workers=3, slots=4)
    yield made
    made.close()


def test_a_servers_load_is_that_of_all_workers(table):
    for worker in range(3):
        table.row(worker).begin(2, 100)
    assert (table.work(2), table.in_flight(2)) == (300, 3)
    assert (table.work(1), table.in_flight(1)) == (0, 0)
    assert table.row(1).in_flight(2) == 1


def test_finished_requests_are_no_load(table):
    row = table.row(0)
    row.begin(3, 70)
    row.begin(3, 30)
    row.end(3, 70)
    assert (table.work(3), table.in_flight(3)) == (30, 1)


def test_admitted_requests_are_counted_over_all_workers(table):
    table.row(0).admit(10)
    table.row(2).admit(5)
    table.row(2).admit(5)
    table.row(2).leave(5)
    assert (table.admitted(), table.admitted_bytes(), table.row(2).admitted()) == (2, 15, 1)


def test_the_row_of_a_dead_worker_is_forgotten(table):
    for worker in range(3):
        table.row(worker).admit(8)
        for slot in range(4):
            table.row(worker).begin(slot, 8)
    table.zero(1)
    assert [table.work(slot) for slot in range(4)] == [16] * 4
    assert (table.admitted(), table.row(1).admitted(), table.row(2).in_flight(3)) == (2, 0, 1)


def test_another_process_sees_it_through_the_descriptor(table):
    script = (
        "import sys; from tritonembed_manager.router.data.load_table import LoadTable;"
        "table = LoadTable(int(sys.argv[1])); table.row(1).begin(0, 42); print(table.workers, table.slots)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script, str(table.fd)]
    said = subprocess.run(command, pass_fds=[table.fd], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["3", "4"]
    assert (table.work(0), table.in_flight(0)) == (42, 1)


def test_there_is_no_row_beyond_the_last_worker(table):
    with pytest.raises(ValueError, match="no worker 3"):
        table.row(3)
