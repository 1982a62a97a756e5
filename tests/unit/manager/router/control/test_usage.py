"""Usage lines add up to what was used."""

import json

import pytest
from tests.fakes.tenants import CountedTime, tenant
from tests.unit.manager.router.data.test_quotas import end

from tritonembed_manager.router.control.tenants import UsageLines


class NoMoreTurnsError(Exception):
    pass


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_there_is_a_line_per_minute_and_active_tenant(tmp_path):
    path, time = tmp_path / "usage", CountedTime(workers=2)
    wall = [1_800_000_030.0]
    slots = {"a": 0, "b": 1}
    usage = UsageLines(path, time.table, lambda: slots, lambda: wall[0])
    waits = []

    def use(name, tokens, worker=0):
        who = tenant(name, slots[name])
        end(time.workers[worker], time.workers[worker].enter(who, 1), tokens=tokens)

    steps = [
        lambda: [use("a", 10), use("a", 5, worker=1)],
        lambda: time.table.zero(1),
        lambda: [use("a", 7), use("b", 1)],
    ]

    async def pause(seconds):
        waits.append(seconds)
        if not steps:
            raise NoMoreTurnsError
        steps.pop(0)()
        wall[0] += seconds

    with pytest.raises(NoMoreTurnsError):
        await usage.keep(pause)
    found = lines(path)
    assert waits == [30, 60, 60, 60]
    assert [(line["minute"], line["tenant"], line["requests"], line["tokens"]) for line in found] == [
        ("2027-01-15T08:00:00Z", "a", 2, 15),
        ("2027-01-15T08:02:00Z", "a", 1, 7),
        ("2027-01-15T08:02:00Z", "b", 1, 1),
    ]


def test_refused_and_failed_requests_are_apart(tmp_path):
    path, time = tmp_path / "usage", CountedTime()
    usage = UsageLines(path, time.table, lambda: {"a": 0}, lambda: 0.0)
    who = tenant(requests_per_minute=1)
    end(time.quotas, time.quotas.enter(who, 1), tokens=0, answered=False)
    with pytest.raises(Exception, match="used up"):
        time.quotas.enter(who, 1)
    usage.write()
    assert lines(path) == [
        {"minute": "1970-01-01T00:00:00Z", "tenant": "a", "requests": 0, "tokens": 0, "failed": 1, "refused": 1}
    ]


def test_what_can_not_be_written_is_written_later(tmp_path, caplog):
    folder, time = tmp_path / "folder", CountedTime()
    usage = UsageLines(folder / "usage", time.table, lambda: {"a": 0}, lambda: 0.0)
    end(time.quotas, time.quotas.enter(tenant(), 3))
    usage.write()
    assert "--usage-file cannot be written: No such file or directory; the counts are kept" in caplog.text
    assert str(tmp_path) not in caplog.text
    folder.mkdir()
    usage.write()
    usage.write()
    assert [line["tokens"] for line in lines(folder / "usage")] == [3]
