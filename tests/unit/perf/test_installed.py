"""`pip install '.[perf]'` installs what the commands need. A missing package is one line."""

import ast
import re
import sys
from pathlib import Path

import pytest
import tomllib

import tritonembed_perf
from tritonembed_perf.cli import main

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGE = Path(tritonembed_perf.__path__[0])
OTHER_NAMES = {"grpc": "tritonclient", "aiohttp": "tritonclient"}
"""Packages whose name is not their module's, and packages that tritonclient installs."""


def test_the_extra_has_all_packages_for_measuring_a_running_server() -> None:
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    named = {re.split(r"[\[>=]", line)[0] for line in (*project["dependencies"], *extras["cli"], *extras["perf"])}
    imported = set()
    for pattern in ("*.py", "loadgen/*.py"):
        for path in PACKAGE.glob(pattern):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.Import):
                    imported |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    imported.add(node.module.partition(".")[0])
    foreign = {name for name in imported - sys.stdlib_module_names if not name.startswith("tritonembed")}
    assert {OTHER_NAMES.get(name, name) for name in foreign} <= named


def test_nothing_in_the_wheel_imports_what_is_left_out_of_it() -> None:
    left_out = [ROOT / folder for folder in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["exclude"]]
    assert all(folder.is_dir() for folder in left_out)
    names = tuple(f"tritonembed_perf.{folder.name}" for folder in left_out)
    for path in PACKAGE.rglob("*.py"):
        if not any(path.is_relative_to(folder) for folder in left_out):
            assert not [name for name in names if name in path.read_text()], path


def test_a_package_that_is_missing_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("run", "loadgen.target", "loadgen.protocols"):
        monkeypatch.delitem(sys.modules, f"tritonembed_perf.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(SystemExit) as ended:
        main(["run", "--model", "x"])
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("tritonembed-bench: aiohttp is not installed: pip install 'tritonembed[perf]'")
