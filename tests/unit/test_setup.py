"""`scripts/setup.sh` names what a machine lacks with the command that installs it, and makes nothing."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "setup.sh"


def run_setup(folder: Path, python: str) -> subprocess.CompletedProcess[str]:
    """In a checkout of its own, with `python` (a shell script's lines) as the only python3.11 on PATH."""
    for name in ("scripts", "requirements", "bin"):
        (folder / name).mkdir()
    shutil.copy(SCRIPT, folder / "scripts")
    for name in ("cpu.lock", "test-models.txt"):
        (folder / "requirements" / name).touch()
    (folder / "pyproject.toml").touch()
    fake = folder / "bin" / "python3.11"
    fake.write_text(f"#!/bin/sh\n{python}\n")
    fake.chmod(0o755)
    environment = {"PATH": f"{fake.parent}:{os.environ['PATH']}", "PYTHON": "python3.11"}
    done = subprocess.run(
        [folder / "scripts" / "setup.sh"], env=environment, capture_output=True, text=True, check=False
    )
    assert not (folder / ".venv").exists()
    return done


VERSION = "case $2 in *version_info*) echo 3.11; exit;; esac"


@pytest.mark.parametrize(
    ("python", "packages"),
    [
        (f"{VERSION}\ncase $2 in *ensurepip*) exit 1;; esac", "python3.11-venv"),
        (f"{VERSION}\n[ $1 != - ]", "libpython3.11"),
        (f"{VERSION}\nexit 1", "python3.11-venv libpython3.11"),
    ],
)
def test_missing_packages_are_named_with_the_command_that_installs_them(
    tmp_path: Path, python: str, packages: str
) -> None:
    done = run_setup(tmp_path, python)
    assert done.returncode == 1
    assert done.stderr == f"setup: this machine lacks {packages}; install it:\nsetup:   apt-get install {packages}\n"


def test_another_python_is_refused_with_what_is_needed(tmp_path: Path) -> None:
    done = run_setup(tmp_path, "echo 3.12")
    assert done.returncode == 1
    assert "cpu.lock is for Python 3.11, and python3.11 is 3.12: name a 3.11 with PYTHON=" in done.stderr
