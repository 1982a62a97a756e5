"""Kills of a bulk job's processes: the output is that of an undisturbed job; no committed part is computed again."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from tests.models import ModelShelf
from tests.unit.bulk.conftest import make_job
from tests.unit.bulk.here import read_output, run_here

from tritonembed_bulk.attempts import ENDED, MOST_ENDS, MOST_ENDS_OF_A_TEXT
from tritonembed_bulk.parts import ERRORS, RECORDS

PARTS, KILLS = 1000, 20


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """1,000 parts of ten rows: ten files with ten row groups of ten parts each."""
    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(10):
        ids = range(1000 * number, 1000 * (number + 1))
        table = pa.table({"id": ids, "text": [f"text {id}" for id in ids]})
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=100)
    return folder


@contextmanager
def driver(*arguments: object) -> Iterator["subprocess.Popen[str]"]:
    """The job in a process of its own. Its lines are the parts that it saw committed."""
    script = Path(__file__).with_name("bulk_driver.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])}
    command = [sys.executable, str(script), *map(str, arguments)]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def processes_of(driver: int) -> list[psutil.Process]:
    """Ray's processes under a driver."""
    return psutil.Process(driver).children(recursive=True)


def kill_one(driver: int, rng: random.Random) -> bool:
    """Kill a task's or an actor's process; False if none works at the moment."""
    busy = []
    for process in processes_of(driver):
        try:
            title = process.cmdline()[0]
        except (psutil.Error, IndexError):
            continue
        # Not Ray's own agents: without them the machine counts as lost, and the driver ends.
        if title.startswith("ray::Map"):
            busy.append(process)
    if not busy:
        return False
    rng.choice(busy).send_signal(signal.SIGKILL)
    return True


@pytest.mark.timeout(1500)
def test_a_job_of_a_thousand_parts_survives_twenty_kills_of_workers_and_one_of_the_driver(
    source: Path, tmp_path: Path
) -> None:
    undisturbed, out, log = tmp_path / "undisturbed", tmp_path / "out", tmp_path / "log"
    log.mkdir()
    assert len(run_here(make_job(source, undisturbed, part_rows=10))) == PARTS
    rng = random.Random(1)
    killed = 0
    for kills in (KILLS // 2, KILLS):
        with driver(source, out, log, 2) as process:
            assert process.stdout is not None
            for line in process.stdout:
                assert line.strip()
                if killed < kills and rng.random() < 0.05:
                    killed += kill_one(process.pid, rng)
                if killed == KILLS // 2 == kills:
                    left = processes_of(process.pid)
                    process.kill()
                    break
            else:
                assert process.wait() == 0
        if kills == KILLS // 2:
            committed = len(list((out / RECORDS).glob("*.json")))
            assert 0 < committed < PARTS
            _, alive = psutil.wait_procs(left, timeout=100)
            assert not alive
    assert killed == KILLS
    assert read_output(out).equals(read_output(undisturbed))
    last: dict[str, float] = {}
    for file in log.iterdir():
        part = file.name.split()[0]
        last[part] = max(last.get(part, 0.0), file.stat().st_mtime)
    assert len(last) == PARTS
    again = [part for part, began in last.items() if began > (out / RECORDS / f"{part}.json").stat().st_mtime]
    assert again == []
    assert not list(out.rglob(".*.tmp"))


def test_no_process_of_ray_is_left_behind(source: Path, tmp_path: Path) -> None:
    """After an interruption, as Ctrl-C sends it."""
    log = tmp_path / "log"
    log.mkdir()
    with driver(source, tmp_path / "out", log, 1) as process:
        assert process.stdout is not None
        process.stdout.readline()
        left = processes_of(process.pid)
        assert left
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        process.wait()
        _, alive = psutil.wait_procs(left, timeout=100)
        assert not alive
    assert list((tmp_path / "out" / "_tritonembed" / "locks").iterdir()) == []


@pytest.mark.timeout(1200)
def test_the_command_with_a_model_goes_on_to_the_same_bits(shelf: ModelShelf, tmp_path: Path) -> None:
    texts = [f"{'the quick brown fox ' * (number % 9)}{number}" for number in range(600)]
    pq.write_table(pa.table({"id": range(600), "text": texts}), tmp_path / "in.parquet", row_group_size=100)
    options = ["--model", str(shelf("bert")), "--id-column", "id", "--part-rows", "50", "--no-reference"]

    def command(output: Path, *more: str) -> "subprocess.Popen[str]":
        program = [sys.executable, "-c", "from tritonembed.cli import main; main()", "bulk"]
        arguments = [str(tmp_path / "in.parquet"), str(output), *options, *more]
        return subprocess.Popen([*program, *arguments], stderr=subprocess.PIPE, text=True)

    whole, out = tmp_path / "whole", tmp_path / "out"
    assert command(whole).wait() == 0
    process = command(out)
    while not list((out / RECORDS).glob("*.json")):
        assert process.poll() is None
        time.sleep(0.05)
    left = processes_of(process.pid)
    process.kill()
    process.wait()
    assert psutil.wait_procs(left, timeout=100)[1] == []
    committed = {file.name: file.stat().st_mtime_ns for file in out.glob("*.parquet")}
    refused = command(out)
    assert "go on with --resume" in refused.communicate()[1]
    assert refused.returncode == 1
    assert command(out, "--resume").wait() == 0
    assert read_output(out).equals(read_output(whole))
    recorded = {f"{file.stem}.parquet" for file in (out / RECORDS).glob("*.json")}
    assert recorded == {file.name for file in whole.glob("*.parquet")}
    again = {name for name, changed in committed.items() if (out / name).stat().st_mtime_ns != changed}
    # A part whose file was there without its record may be written again, no other.
    assert len(again) <= 2


def test_a_text_that_ends_the_process_is_an_error_and_the_job_goes_on(source: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    log.mkdir()
    poison = "text 4321"
    with driver(source, out, log, 1, poison) as process:
        assert process.stdout is not None
        # Ray warns there, too.
        seen = [line for line in process.stdout.read().splitlines() if " " not in line]
        assert process.wait() == 0
    assert sorted(seen) == sorted(file.stem for file in (out / RECORDS).glob("*.json"))
    assert len(seen) == PARTS
    [error] = pq.read_table(out / ERRORS).to_pylist()
    assert error == {"id": "4321", "part": error["part"], "row": 1, "reason": ENDED}
    run_here(make_job(source, tmp_path / "undisturbed", part_rows=10))
    undisturbed = read_output(tmp_path / "undisturbed")
    assert read_output(out).equals(undisturbed.filter(pc.field("id") != 4321))
    tries = Counter(file.name.split()[0] for file in log.iterdir())
    # The whole; the row before it, and itself, with each end; then the other rows.
    assert tries[error["part"]] == MOST_ENDS + 2 * MOST_ENDS_OF_A_TEXT + 1 + 9
    # A part that was in the process, too, comes again with each end.
    others = max(count for part, count in tries.items() if part != error["part"])
    assert others <= 1 + MOST_ENDS + MOST_ENDS_OF_A_TEXT
