"""`pip install '.[perf]'` brings what the commands need, and what is missing anyway is one line."""

import ast
import re
import sys
from pathlib import Path

import pytest
import tomllib

import tritonembed_perf
from tritonembed_perf.cli import main
from tritonembed_perf.perf_analyzer.scenarios import PLACES

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGE = Path(tritonembed_perf.__path__[0])
OTHER_NAMES = {"yaml": "pyyaml", "grpc": "tritonclient", "aiohttp": "tritonclient"}
"""Packages of another name than their module's, and those that tritonclient brings."""


def test_what_measures_a_running_server_is_in_the_extra() -> None:
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    named = {re.split(r"[\[>=]", line)[0] for line in (*project["dependencies"], *extras["cli"], *extras["perf"])}
    imported = set()
    for folder in ("run", "overhead", "perf_analyzer"):
        for path in (PACKAGE / folder).glob("*.py"):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.Import):
                    imported |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    imported.add(node.module.partition(".")[0])
    foreign = {name for name in imported - sys.stdlib_module_names if not name.startswith("tritonembed")}
    assert {OTHER_NAMES.get(name, name) for name in foreign} <= named


def test_the_scenarios_are_in_the_wheel_where_they_are_looked_for() -> None:
    [place] = [
        target
        for source, target in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"].items()
        if source == "perf/scenarios"
    ]
    assert PLACES[0] == PACKAGE.parent / place


def test_a_package_that_is_missing_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "tritonembed_perf.perf_analyzer.scenarios")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(SystemExit) as ended:
        main(["perf-analyzer", "--model", "x"])
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("tritonembed-bench: yaml is not installed: pip install 'tritonembed[perf]'")
