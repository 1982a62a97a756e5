"""What all peers have in common, and which Python a peer runs on: a named one, an environment made on demand, ours."""

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tritonembed_perf.failures import UsageError
from tritonembed_perf.reports import installed_versions

LINE_LENGTH = 160
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
QUESTION_LIMIT_S = 120.0
QUESTION = """
import importlib.util, json, sys
from importlib import metadata
packages = metadata.packages_distributions()
for name in sys.argv[1:]:
    if importlib.util.find_spec(name) is None:
        sys.exit(name + " is not installed")
found = [packages[name][0] for name in sys.argv[1:] if name in packages]
print(", ".join(name + " " + metadata.version(name) for name in found))
"""


class CannotRunError(Exception):
    """Why a peer has no figures: one line for the table."""


@dataclass(frozen=True)
class Bench:
    """What all peers have in common. model: a folder. work: the folder of virtual environments and logs.

    pythons: of environments by name, to be used as they are. install: whether the others are made.
    """

    model: Path
    dtype: str
    device: str
    cores: int
    work: Path
    pythons: Mapping[str, str] = field(default_factory=dict)
    install: bool = True

    @property
    def on_gpu(self) -> bool:
        """Whether the model runs on a GPU."""
        return self.device == "cuda"


@dataclass(frozen=True)
class Environment:
    """The packages of a peer. name: as --python has it. modules: what it imports; their versions are in the report.

    requirements: what pip installs; none if the peer shares this project's packages.
    """

    name: str
    modules: tuple[str, ...]
    requirements: tuple[str, ...] = ()


def find_python(bench: Bench, environment: Environment) -> tuple[str, str]:
    """The Python, and versions in words. Raises CannotRunError if something is missing or can't be installed."""
    python = bench.pythons.get(environment.name, sys.executable)
    if environment.requirements and bench.install and environment.name not in bench.pythons:
        python = str(virtual_environment(bench, environment))
    try:
        asked = [python, "-c", QUESTION, *environment.modules]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=QUESTION_LIMIT_S)
    except (OSError, subprocess.SubprocessError):
        raise CannotRunError("its Python does not run") from None
    if done.returncode:
        where = "the Python of --python" if environment.name in bench.pythons else Path(python).name
        raise CannotRunError(f"{(done.stderr.splitlines() or ['its Python does not run'])[-1]} ({where})")
    return python, done.stdout.strip()


def virtual_environment(bench: Bench, environment: Environment) -> Path:
    """The environment's Python, with the requirements installed; made again when they have changed.

    On a CPU it gets the CPU build of this environment's torch: a plain torch is gigabytes of CUDA. Raises
    CannotRunError with pip's last words.
    """
    folder = bench.work / "venvs" / environment.name
    python, stamp = folder / "bin" / "python", folder / ".installed"
    torch = installed_versions(["torch"]).get("torch", "").partition("+")[0]
    pins = [] if bench.on_gpu or not torch else [f"torch=={torch}+cpu"]
    wanted = "\n".join([*pins, *environment.requirements])
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    _run([sys.executable, "-m", "venv", "--clear", str(folder)])
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    if pins:
        _run([*install, "--no-deps", "--extra-index-url", TORCH_INDEX, *pins])
    _run([*install, *pins, *environment.requirements])
    stamp.write_text(wanted)
    return python


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


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.splitlines()
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:] or ["?"]
        raise CannotRunError(f"it can't be installed: {errors[-1][:LINE_LENGTH]}")
