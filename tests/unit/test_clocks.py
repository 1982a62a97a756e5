"""The machine's clock may jump, so code that waits, expires or counts seconds does not read it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WALL_CLOCKS = {"time.time", "time.time_ns", "time.localtime", "time.gmtime", "datetime.now", "datetime.utcnow"}
SHOWN_ONLY = {
    "manager/tritonembed_manager/router/control/status.py": {"time.time"},
    "manager/tritonembed_manager/router/apis/http/openai.py": {"time.time"},
    "manager/tritonembed_manager/router/apis/http/rerank.py": {"time.time"},
    "manager/tritonembed_manager/router/log.py": {"time.time"},
    "manager/tritonembed_manager/router/data/access_log.py": {"time.time"},
    "manager/tritonembed_manager/router/data/metrics.py": {"time.time"},
    "bulk/tritonembed_bulk/report.py": {"datetime.now"},
}
"""Files that only show the time. No decision depends on it."""
BY_THE_CALENDAR = {
    "manager/tritonembed_manager/router/data/tenants.py": {"time.time"},
    "manager/tritonembed_manager/router/control/tenants.py": {"time.time"},
}
"""A key expires on a date, and a bill is for the minutes of a day."""
ALLOWED = SHOWN_ONLY | BY_THE_CALENDAR


def wall_clocks(source):
    """The calls and mentions of the wall clock in a source."""
    names = {ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    imported = {
        f"time.{name.name}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.module == "time"
        for name in node.names
    }
    return {clock for clock in WALL_CLOCKS if any(name.endswith(clock) for name in names | imported)}


@pytest.mark.parametrize("package", ["client", "engine", "bulk", "manager", "model_repository"])
def test_time_is_measured_with_a_clock_that_does_not_jump(package):
    files = [file for file in (ROOT / package).rglob("*.py") if ".venv" not in file.parts]
    assert files
    found = {str(file.relative_to(ROOT)): clocks for file in files if (clocks := wall_clocks(file.read_text()))}
    unexpected = {name: clocks for name, clocks in found.items() if not clocks <= ALLOWED.get(name, set())}
    assert unexpected == {}


def test_the_wall_clock_is_found_however_it_is_called():
    assert wall_clocks("import time\nx = time.time() + 3") == {"time.time"}
    assert wall_clocks("from time import time") == {"time.time"}
    assert wall_clocks("import datetime\ndatetime.datetime.now()") == {"datetime.now"}
    assert wall_clocks("import time\ntime.monotonic()\ntime.sleep(1)") == set()
