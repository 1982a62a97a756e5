"""The wheel of this checkout, in environments of its own."""

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterable, Iterator
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]


def build(folder: Path) -> Path:
    """The wheel, built from this checkout."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True)
    (found,) = folder.glob("*.whl")
    return found


def required(name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]] | None = None) -> Iterator[str]:
    """The names of what a distribution requires for these extras, and of what that requires."""
    seen = set() if seen is None else seen
    if (name, extras) in seen:
        return
    seen.add((name, extras))
    for text in distribution(name).requires or ():
        requirement = Requirement(text)
        if any(not requirement.marker or requirement.marker.evaluate({"extra": extra}) for extra in (extras or {""})):
            yield requirement.name
            yield from required(requirement.name, frozenset(requirement.extras), seen)


def install(wheel: Path, folder: Path, names: Iterable[str]) -> Path:
    """An environment with the wheel, and with links to these packages of this environment. Returns its bin folder."""
    venv.create(folder)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    for name in set(names) - {"tritonembed"}:
        found = distribution(name)
        for file in {Path(file).parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            target = packages / file
            if not target.exists():
                target.symlink_to(Path(str(found.locate_file(file))))
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--no-index", str(wheel)], check=True, capture_output=True)
    return folder / "bin"


def run(*command: object) -> subprocess.CompletedProcess[str]:
    """Run a command of such an environment, outside of the checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment, cwd="/")
