"""Commands import, load and run nothing from the folder in which they are started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests import hostile_folder

from tritonembed_engine.stub import child_python
from tritonembed_manager.server.environment import clean

SCRIPTS = Path(sys.executable).parent
OF_RUNPY = {"typing", "random", "tempfile"}
"""Modules that `python -m` may import before any module of ours runs."""


def run_in(folder, command, **environment):
    # Other tests in this process may have set the variable.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run(
        command, cwd=folder, env=inherited | environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("command", ["tritonembed", "tritonembed-manager", "tritonembed-bench"])
def test_a_command_imports_nothing_from_the_current_folder(tmp_path, command):
    mark = hostile_folder.fill(tmp_path / "here")
    run_in(tmp_path / "here", [SCRIPTS / command, "--help"])
    assert not mark.exists(), mark.read_text()


@pytest.mark.parametrize("module", ["tritonembed_manager", "tritonembed_perf"])
def test_a_module_run_by_python_imports_nothing_more_from_the_current_folder(tmp_path, module):
    names = [name for name in hostile_folder.NAMES if name not in OF_RUNPY]
    mark = hostile_folder.fill(tmp_path / "here", names)
    run_in(tmp_path / "here", [sys.executable, "-m", module, "--help"])
    assert not mark.exists(), mark.read_text()


@pytest.mark.parametrize("path", ["", ":/nowhere", "/nowhere:", "/nowhere::/nowhere"])
def test_an_empty_entry_of_pythonpath_is_not_the_current_folder(tmp_path, path):
    # Python's own imports, before any program runs, can't be changed.
    mark = hostile_folder.fill(tmp_path / "here", ["grpc", "typer", "orjson", "aiohttp", "numpy"])
    run_in(tmp_path / "here", [SCRIPTS / "tritonembed-manager", "serve", "--help"], PYTHONPATH=path)
    assert not mark.exists(), mark.read_text()


@pytest.mark.parametrize("version", [(3, 10), (3, 12)])
def test_a_child_imports_nothing_from_the_current_folder_and_gets_its_arguments(tmp_path, monkeypatch, version):
    mark = hostile_folder.fill(tmp_path / "here")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "child.py").write_text("import json, sys\nprint(__name__, json.dumps(sys.argv[1:]))\n")
    monkeypatch.setattr(child_python.sys, "version_info", version)
    command = child_python.module_command("child", "--number", "1")
    assert run_in(tmp_path / "here", command, PYTHONPATH=str(tmp_path / "lib")) == '__main__ ["--number", "1"]\n'
    assert not mark.exists(), mark.read_text()


def test_variables_of_children_name_no_current_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    environment = {
        "PATH": "::/usr/bin:.:bin:",
        "LD_LIBRARY_PATH": ":/opt/lib:lib:",
        "PYTHONPATH": ":src:/opt/src",
        "PYTHONSTARTUP": "/x.py",
        "PYTHONINSPECT": "1",
        "BASH_ENV": "x.sh",
        "OTHER": "kept",
        "HF_HOME": "cache",
        "TMPDIR": "",
    }
    clean(environment)
    assert environment == {
        "PATH": "/usr/bin",
        "LD_LIBRARY_PATH": f"/opt/lib:{tmp_path}/lib",
        "PYTHONPATH": f"{tmp_path}/src:/opt/src",
        "PYTHONSAFEPATH": "1",
        "OTHER": "kept",
        "HF_HOME": f"{tmp_path}/cache",
        "TMPDIR": "",
    }
    nothing = {"PATH": ":", "LD_LIBRARY_PATH": ":", "PYTHONPATH": ""}
    clean(nothing)
    assert nothing == {"PATH": os.defpath, "PYTHONSAFEPATH": "1"}
