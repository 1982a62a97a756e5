"""The wheel of this checkout, in environments of its own."""

import email
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
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


def required(wheel: Path, extras: frozenset[str]) -> set[str]:
    """The names of what a wheel requires for these extras, and of what that requires."""
    with zipfile.ZipFile(wheel) as file:
        (name,) = [name for name in file.namelist() if name.endswith(".dist-info/METADATA")]
        texts = email.message_from_string(file.read(name).decode()).get_all("Requires-Dist", [])
    return set(_required(texts, extras, set()))


def _required(texts: Iterable[str], extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> Iterator[str]:
    for requirement in map(Requirement, texts):
        marker, wanted = requirement.marker, frozenset(requirement.extras)
        if any(not marker or marker.evaluate({"extra": extra}) for extra in (extras or {""})):
            yield requirement.name
            # An extra of ours, or a package that was seen already.
            if requirement.name != "tritonembed" and (requirement.name, wanted) not in seen:
                seen.add((requirement.name, wanted))
                yield from _required(distribution(requirement.name).requires or (), wanted, seen)


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
