"""What a job shows: rates, time left, cost, and a report without secrets."""

import json
from dataclasses import replace

import pytest

from tritonembed_bulk import report
from tritonembed_bulk.parts import Record
from tritonembed_bulk.report import Counts, Progress, command_line, write_report
from tritonembed_bulk.store import Store

RECORD = Record("p", "f", 1, "1", 0, 50, 50, 49, 3400, 1, "s", 1000, 2.0)


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(report.time, "monotonic", lambda: Clock.now)
    return Clock


def test_rates_time_left_busy_and_cost(clock):
    before = Counts()
    before.add(RECORD)
    progress = Progress(200, before, workers=2, price=36.0, start=100.0)
    clock.now = 110.0
    progress.add(replace(RECORD, busy=8.0))
    figures = progress.figures()
    assert figures["rows"] == 100
    assert figures["tokens_per_second"] == 340.0
    assert figures["seconds_left"] == 20.0
    assert figures["done"] == 0.5
    assert figures["busy"] == 0.4
    assert figures["cost"] == 0.1
    assert figures["errors"] == 2


def test_rates_are_those_of_the_last_seconds(clock):
    progress = Progress(10**6, Counts(), start=100.0)
    for second in range(1, 201):
        clock.now = 100.0 + second
        progress.add(replace(RECORD, tokens=1000 if second <= 100 else 4000))
    assert progress.figures()["tokens_per_second"] == pytest.approx(4000, rel=0.05)
    assert progress.figures(whole=True)["tokens_per_second"] == 2500


def test_the_plot_stays_small(clock, monkeypatch):
    monkeypatch.setattr(report, "MOST_POINTS", 100)
    progress = Progress(10**6, Counts(), start=100.0)
    for second in range(1000):
        clock.now = 100.0 + second
        progress.add(RECORD)
    assert len(progress.points) <= 101
    assert progress.points[0] == (0.0, 0, 0)


def test_a_report_has_counts_machines_versions_and_a_plot(tmp_path, clock):
    progress = Progress(200, Counts(), price=1.0, start=100.0)
    for _ in range(4):
        clock.now += 10
        progress.add(RECORD)
    name = write_report(Store(str(tmp_path)), progress, "complete", "space", [{"host": "a", "cpus": 2}])
    found = json.loads((tmp_path / name).read_text())
    assert found["figures"]["tokens"] == 4 * 3400
    assert found["machines"] == [{"host": "a", "cpus": 2}]
    assert found["versions"].keys() >= {"tritonembed", "ray", "pyarrow"}
    assert [point["tokens"] for point in found["rate"]] == [0, 3400, 6800, 10200, 13600]
    assert (tmp_path / name.replace(".json", ".svg")).read_text().startswith("<?xml")


def test_the_command_of_a_report_has_no_secrets():
    given = ["/x/tritonembed", "bulk", "postgres://me:word@host/db", "s3://id:key@bucket/x?secret_key=abc&region=eu"]
    given += ["--api-key", "k1", "--api-key=k2", "--metadata", "a=k3", "--text-column", "body"]
    shown = command_line(given)
    assert shown[:4] == ["tritonembed", "bulk", "postgres://***@host/db", "s3://***@bucket/x?secret_key=***&region=eu"]
    assert shown[4:] == ["--api-key", "***", "--api-key=***", "--metadata", "***", "--text-column", "body"]
