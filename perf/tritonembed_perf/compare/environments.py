"""Which Python a peer runs on: one that was named, a virtual environment made on demand, or this one."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tritonembed_perf.compare.peer import Bench, CannotRunError
from tritonembed_perf.failures import UsageError
from tritonembed_perf.reports import installed_versions

PROGRAMS = Path(__file__).parent / "programs"
DONE = ".installed"
LINE_LENGTH = 160
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
QUESTION_LIMIT_S = 120.0
QUESTION = """
import importlib.util, json, sys
from importlib import metadata
modules, packages = json.loads(sys.argv[1])
versions = {}
for package in packages:
    try:
        versions[package] = metadata.version(package)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps([[name for name in modules if importlib.util.find_spec(name) is None], versions]))
"""


def own_python(bench: Bench, name: str, requirements: Sequence[str], modules: Sequence[str]) -> str:
    """The Python of an environment of the peer's own. name: as --python has it; modules: what it has to import.

    Raises CannotRunError if something is missing or can't be installed.
    """
    if name in bench.pythons or not bench.install:
        return this_python(bench, name, modules)
    return str(virtual_environment(bench, name, requirements))


def this_python(bench: Bench, name: str, modules: Sequence[str]) -> str:
    """The Python of a peer that shares this project's packages. Raises CannotRunError if one is missing."""
    python = bench.pythons.get(name, sys.executable)
    missing, _ = _ask(python, modules, ())
    if missing:
        where = "the Python of --python" if name in bench.pythons else "this Python"
        others = " and others are" if len(missing) > 1 else " is"
        raise CannotRunError(f"{missing[0]}{others} not installed in {where}")
    return python


def versions(python: str, packages: Sequence[str]) -> str:
    """Such as `vllm 0.25.1, torch 2.11.0`, of those that are installed there."""
    _, found = _ask(python, (), packages)
    return ", ".join(f"{package} {version}" for package, version in found.items())


def parse_pythons(values: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """Of PEER=PATH. Raises UsageError."""
    pythons = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not equals or name not in known:
            raise UsageError(f"--python is PEER=PATH, and PEER one of {', '.join(known)}")
        program = shutil.which(Path(path).expanduser())
        if program is None:
            raise UsageError(f"--python {name}: {path} is not a program")
        # Not resolved: a virtual environment's Python is a link.
        pythons[name] = str(Path(program).absolute())
    return pythons


def virtual_environment(bench: Bench, name: str, requirements: Sequence[str]) -> Path:
    """The environment's Python, with the requirements installed; made again when they have changed.

    On a CPU it gets the CPU build of this environment's torch: a plain torch is gigabytes of CUDA. Raises
    CannotRunError with pip's last words.
    """
    folder = bench.work / "venvs" / name
    python = folder / "bin" / "python"
    stamp = folder / DONE
    torch = installed_versions(["torch"]).get("torch", "").partition("+")[0]
    pins = [] if bench.on_gpu or not torch else [f"torch=={torch}+cpu"]
    wanted = "\n".join([*pins, *requirements])
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _run([sys.executable, "-m", "venv", str(folder)])
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    constraints: list[str] = []
    if pins:
        _install_torch([*pip, "--no-deps"], pins[0])
        (folder / "constraints.txt").write_text(pins[0] + "\n")
        constraints = ["--constraint", str(folder / "constraints.txt")]
    _run([*pip, *constraints, *requirements])
    stamp.write_text(wanted)
    return python


def _install_torch(pip: list[str], torch: str) -> None:
    """From pip's own index, else from PyTorch's, which has the CPU builds."""
    try:
        _run([*pip, torch])
    except CannotRunError:
        _run([*pip, "--index-url", TORCH_INDEX, torch])


def _ask(python: str, modules: Sequence[str], packages: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    command = [python, "-c", QUESTION, json.dumps([list(modules), list(packages)])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=QUESTION_LIMIT_S, check=True)
        missing, found = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        raise CannotRunError("its Python does not run") from None
    return missing, found


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.splitlines()
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:] or ["?"]
        raise CannotRunError(f"it can't be installed: {errors[-1][:LINE_LENGTH]}")
