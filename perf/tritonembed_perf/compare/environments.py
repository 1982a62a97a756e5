"""What all peers have in common, and which Python a peer runs on: ours, or the one that --python names."""

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tritonembed_perf.failures import UsageError

LINE_LENGTH = 160
QUESTION_LIMIT_S = 120.0
QUESTION = """
import importlib.util, sys
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
    """What all peers have in common. model: a folder. work: the folder of logs. pythons: of --python, by name."""

    model: Path
    dtype: str
    device: str
    cores: int
    work: Path
    pythons: Mapping[str, str] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        """Whether the model runs on a GPU."""
        return self.device == "cuda"


@dataclass(frozen=True)
class Environment:
    """The packages of a peer. name: as --python has it. modules: what it imports; their versions are in the report.

    requirement: what pip installs, in an environment of its own if it does not suit ours.
    """

    name: str
    modules: tuple[str, ...]
    requirement: str


def find_python(bench: Bench, environment: Environment) -> tuple[str, str]:
    """The Python, and versions in words. Raises CannotRunError if something is missing."""
    python = bench.pythons.get(environment.name, sys.executable)
    try:
        asked = [python, "-c", QUESTION, *environment.modules]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=QUESTION_LIMIT_S)
    except (OSError, subprocess.SubprocessError):
        raise CannotRunError("its Python does not run") from None
    if done.returncode:
        reason = (done.stderr.splitlines() or ["its Python does not run"])[-1]
        raise CannotRunError(f"{reason}: pip install {environment.requirement}, and --python {environment.name}=PYTHON")
    return python, done.stdout.strip()


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
